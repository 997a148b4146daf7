"""What a run computes on: the device, the number format, the threads, and how fast the machine can be at best.

Weights, their gradients and the optimizer's state are fp32 always; `precision` is the format of the products in the
forward and backward passes. bf16 has fp32's range and needs no care. fp16 is for GPUs without bf16: its range is small,
so training scales the loss (llm/optim/guard.py). TF32 rounds the inputs of fp32 products on NVIDIA's GPUs to ten bits,
for several times the speed.

On a GPU cuDNN computes attention in pretraining alone, whose shapes are fixed, and only where it is known to be right:
it makes a plan for each new shape, and it is not deterministic.
"""

import ctypes
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llm import devices
from llm.compute_config import ComputeConfig
from llm.errors import WordmillError
from llm.user_cache import user_cache

FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Compute:
    """A resolved `ComputeConfig`: `device`, `dtype`, `autocast()` and `compiled()` for the forward pass.

    `index` is the number of the GPU to use; without it, the thread's current one. Raises WordmillError when a device or
    format was asked for that this machine does not have. There is no other fallback than `auto`, which says in `why`
    what it took.
    """

    def __init__(self, config: ComputeConfig, index: int | None = None) -> None:
        if config.device in ("auto", "cuda") and torch.cuda.is_available():
            devices.be_deterministic(config.deterministic)  # before CUDA starts
        self.device, self.why = devices.choose(config.device, index)
        name = self.device.type
        if index is not None:
            self.use_in_thread()
        supported = _multiplies_bf16(name)
        if config.precision == "bf16" and name == "cuda" and not supported:
            raise WordmillError("compute.precision: this GPU has no bf16; use fp16, fp32 or auto")
        use_bf16 = config.precision == "bf16" or (config.precision == "auto" and supported)
        self.dtype = torch.bfloat16 if use_bf16 else torch.float16 if config.precision == "fp16" else torch.float32
        if config.compile:
            _require_compiler(name)
        self.config = config
        self.threads = config.threads
        torch.set_num_threads(config.threads)
        if name == "cuda":
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
            torch.backends.cuda.enable_cudnn_sdp(False)  # but see `fixed_shapes`

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f", {self.threads} threads" if self.device.type == "cpu" else ""
        if name == "mps" and os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1":
            name += " (operations that it lacks run on the CPU)"
        tf32 = ", tf32" if self.device.type == "cuda" and self.config.tf32 else ""
        compiled = ", compiled" if self.config.compile else ""
        exact = ", deterministic" if self.device.type == "cuda" and self.config.deterministic else ""
        return f"{name}, {FORMATS[self.dtype]}{tf32}{compiled}{exact}{threads}"

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in bf16 or fp16 with fp32 weights kept, or nothing for fp32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def scales_loss(self) -> bool:
        """Gradients in this format need a loss scale."""
        return self.dtype == torch.float16

    @property
    def in_step(self) -> bool:
        """The host computes: to look at a number is not to wait for a device."""
        return self.device.type == "cpu"

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, through torch.compile if the settings say so; the first call then takes its time."""
        if not self.config.compile:
            return function
        # What it compiles is loaded again by later runs; torch's own default lies among the temporary files.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache("wordmill/torchinductor")))
        return torch.compile(function)

    def uncompiled(self) -> "Compute":
        """The same without torch.compile."""
        return Compute(replace(self.config, compile=False), self.device.index)

    def on(self, device: torch.device) -> "Compute":
        """The same on another device of its kind."""
        return self if device == self.device else Compute(self.config, device.index)

    def use_in_thread(self) -> None:
        """Make the GPU the current one of the calling thread: CUDA's current device belongs to a thread."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index)

    @contextmanager
    def fixed_shapes(self, cudnn: bool) -> Iterator[None]:
        """Around work whose shapes do not change. If `cudnn`, cuDNN may compute its attention on a GPU."""
        if self.device.type != "cuda" or self.config.deterministic or not cudnn:
            yield
            return
        torch.backends.cuda.enable_cudnn_sdp(True)
        try:
            yield
        finally:
            torch.backends.cuda.enable_cudnn_sdp(False)

    def wait(self) -> None:
        """Until the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def measure_peak(self, seconds: float = 0.3) -> float:
        """FLOP/s of a large matrix product in `dtype`, measured now: the limit that speeds are shown against."""
        n = 4096 if self.device.type == "cuda" else 1024
        if self.device.type == "cpu" and self.dtype == torch.float16:
            n = 256  # the larger one takes seconds: processors rarely multiply fp16
        draw = torch.Generator().manual_seed(0)  # not ones: a chip draws less power for them and runs faster
        a, b = (torch.randn(n, n, generator=draw).to(self.device, self.dtype) for _ in range(2))
        best = 0.0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            a @ b
            self.wait()
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
        return best


def keep_freed_memory() -> None:
    """Have C's allocator keep, for the rest of the process, what is freed; where it is glibc's and so can be told.

    By itself it hands every large tensor back to the kernel, which clears the pages again when the next step writes to
    them: a tenth of a training step on a CPU (docs/LOG.md, 2026-11-26).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        largest_mapped, trim_above = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
        mallopt(largest_mapped, 0)
        mallopt(trim_above, -1)  # never


def _require_compiler(device: str) -> None:
    """Raises WordmillError where torch.compile cannot work."""
    if device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise WordmillError("compute.compile: torch.compile needs a C++ compiler here; install g++, or use false")
    if device == "cuda" and not any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang"))):
        raise WordmillError("compute.compile: torch.compile needs a C compiler here; install gcc, or use false")
    if device != "mps" and not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise WordmillError(
            "compute.compile: torch.compile needs Python's header files here; install python3-dev, or use false"
        )


def _multiplies_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
