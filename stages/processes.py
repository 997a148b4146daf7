"""Which process this is, whether another is alive, and that one does not outlive the one that started it."""

import ctypes
import os
import platform
import signal
import sys
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def host() -> str:
    """The machine's name: process ids mean something only beside it."""
    return platform.node() or "unknown"


def started(pid: int) -> str:
    """When a process started, in the system's own unit; empty if no such process is alive.

    Linux counts ticks since the machine started, which, unlike a time of day, a corrected clock leaves as they are.
    """
    try:
        if Path("/proc/self/stat").exists():
            state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return "" if state in "ZX" else rest[18]
        return f"{psutil.Process(pid).create_time():.0f}"
    except (OSError, psutil.Error):
        return ""


def die_with_parent(signum: signal.Signals, parent: int) -> None:
    """Ask the kernel for a signal when `parent`, the process that started this one, ends. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died before the kernel was asked
            sys.exit(128 + signal.SIGTERM)
