"""The section `compute`: what a run asks of the machine. Free of torch, so that a check of params.yaml is fast."""

from dataclasses import dataclass
from typing import Literal

from llm.limits import check_limits

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class ComputeConfig:
    """Raises ConfigError for values out of range; what the machine lacks is found by `Compute`."""

    device: DeviceName  # auto: cuda if there is one, else mps, else cpu
    precision: Literal["auto", "fp32", "bf16", "fp16"]  # auto: bf16 where the processor multiplies it faster than fp32
    tf32: bool  # fp32 products on an NVIDIA GPU may round their inputs to TF32
    compile: bool  # pretraining runs the model through torch.compile
    threads: int  # CPU threads; results are bit-stable for one count, not across counts
    deterministic: bool = True  # CUDA: the same bits each time, by kernels that may be slower

    def __post_init__(self) -> None:
        check_limits(self, {"threads": (1, 1024)})
