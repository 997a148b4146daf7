"""Byte-level BPE: training, encoding, files."""
