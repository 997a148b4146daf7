"""The library: everything about language models, nothing about where files lie or who runs it."""

import os

# Before torch is imported: Apple's GPU leaves what it cannot compute to the CPU, and torch says so once.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
