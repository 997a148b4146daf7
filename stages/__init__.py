"""One thin script for each stage of the pipeline."""
