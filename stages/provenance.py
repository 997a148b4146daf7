"""Where a run happened: the commit and what was changed since, the packages, the machine.

None of this enters what DVC hashes; it goes to MLflow, where it says why two runs differ.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import psutil

HEADER = re.compile(r"^(Name|Version): *(.*?) *$", re.MULTILINE)  # of a distribution's METADATA
# Instruction sets between which libraries choose: sums come out in another order.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sve", "asimd")
# What the user may have set that changes the arithmetic.
SETTINGS = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)


def commit() -> str | None:
    """The commit that is checked out; None outside a git repository."""
    return _output("git", "rev-parse", "HEAD")


def packages() -> str:
    """Every installed distribution as `name==version`, a line each, sorted."""
    found = dict(_named(each) for each in importlib.metadata.distributions())
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()) if name)


def _named(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Name in lower case and version, by a look at the metadata's lines: to parse hundreds of them takes a second."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    found = dict(HEADER.findall(text.partition("\n\n")[0]))
    return found.get("Name", "").lower(), found.get("Version", "")


def hardware() -> dict[str, str]:
    """The machine in a few words; memory in GiB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {
        "cpu": _cpu(),
        "cores": str(cores),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if features := _features():
        found["instructions"] = features
    if settings := " ".join(f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name)):
        found["settings"] = settings
    if shutil.which("nvidia-smi") and (
        gpu := _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    ):
        found["gpu"] = "; ".join(gpu.splitlines())
    return found


def _features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return ""
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join(feature for feature in FEATURES if feature in flags)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    found = program_output(*command)
    return found.decode(errors="replace").strip() if found is not None else None


def program_output(*command: str, statuses: tuple[int, ...] = (0,)) -> bytes | None:
    """What a program prints; None if it is not installed, takes too long, or ends with another status."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode in statuses else None
