"""What this machine has for a run, found without importing torch: its build, the NVIDIA driver, the GPUs, a compiler.

`Compute` asks torch itself, which is the last word. This is for checks before anything runs: they take milliseconds,
and what they refuse torch would refuse as well. Where torch is imported already it is asked here too.
"""

import ast
import ctypes
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llm.compute_config import ComputeConfig
from llm.errors import WordmillError

COMPUTE_CAPABILITY_MAJOR = 75  # CUdevice_attribute of cuda.h
BFLOAT16_SINCE = 8  # compute capability of the first GPUs that multiply bf16


@dataclass(frozen=True)
class Gpus:
    """The CUDA devices that torch can use here; without any, `problem` says why."""

    count: int = 0
    capability: int = 0  # the lowest major compute capability among them
    problem: str = ""


def gpus() -> Gpus:
    """The CUDA devices."""
    if (torch := sys.modules.get("torch")) is not None:
        if not torch.cuda.is_available():
            return Gpus(problem="torch finds no GPU")
        count = torch.cuda.device_count()
        return Gpus(count, min(torch.cuda.get_device_capability(index)[0] for index in range(count)))
    if _built_without_cuda():
        return Gpus(problem="the installed torch is built without CUDA")
    return _asked_of_the_driver()


def has_mps() -> bool:
    """Whether there may be an Apple GPU that torch computes on."""
    if (torch := sys.modules.get("torch")) is not None:
        return bool(torch.backends.mps.is_available())
    return sys.platform == "darwin" and platform.machine() == "arm64"


def device(config: ComputeConfig) -> str:
    """The kind of device that `config` leads to: cpu, cuda or mps. Raises WordmillError if it is not there."""
    if config.device == "cpu":
        return "cpu"
    found = gpus()
    if config.device == "auto":
        return "cuda" if found.count else "mps" if has_mps() else "cpu"
    if config.device == "cuda" and not found.count:
        raise WordmillError(f"compute.device: cuda is not available on this machine ({found.problem}); use auto or cpu")
    if config.device == "mps" and not has_mps():
        raise WordmillError("compute.device: mps is not available on this machine; use auto or cpu")
    return config.device


def check(config: ComputeConfig) -> None:
    """Raises WordmillError for a device, a format or a compiler that this machine lacks."""
    name = device(config)
    if config.precision == "bf16" and name == "cuda" and gpus().capability < BFLOAT16_SINCE:
        raise WordmillError("compute.precision: this GPU has no bf16; use fp16, fp32 or auto")
    if config.compile and name == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise WordmillError("compute.compile: torch.compile needs a C++ compiler here; install g++, or use false")


@cache
def _built_without_cuda() -> bool:
    """What torch/version.py says of the build."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return True
    try:
        tree = ast.parse((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return False  # not known
    values = {
        node.target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    builds = [values.get(name) for name in ("cuda", "hip")]
    return all(isinstance(value, ast.Constant) and value.value is None for value in builds)


def _asked_of_the_driver() -> Gpus:
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Gpus(problem="there is no NVIDIA driver")
    if status := driver.cuInit(0):
        return Gpus(problem=f"the NVIDIA driver answers with error {status}")
    count, major = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        return Gpus(problem="the NVIDIA driver finds no GPU")
    majors = []
    for index in range(count.value):
        driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, index)
        majors.append(major.value)
    return Gpus(count.value, min(majors))
