"""The library: everything about language models, nothing about where files lie or who runs it."""
