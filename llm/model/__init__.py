"""The transformer: its shape, its parts, its counts, its folders."""
