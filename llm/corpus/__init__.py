"""Where documents come from, and the corpus on disk."""
