"""The section `pretrain`: how the base model is trained. Free of torch, so that a check of params.yaml is fast."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm.errors import ConfigError
from llm.limits import SEED, check_limits

ELEMENTWISE = ("adamw", "adamw_reference")  # optimizers that need no weight whole
LIMITS = {
    "steps": (0, 1_000_000_000_000),
    "batch_size": (1, 1_048_576),
    "micro_batch_size": (1, 1_048_576),
    "processes": (1, 65_536),
    "seed": SEED,
}
ParallelKind = Literal["none", "ddp", "fsdp2"]


@dataclass(frozen=True)
class PretrainConfig:
    """Raises ConfigError."""

    # No byte of the outputs depends on these: a stopped run is taken up again after a change of them.
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ("sample_every", "checkpoint_every", "checkpoints_kept")

    start_from: str  # a model folder whose weights to begin with; empty: weights drawn at random
    continue_from: str  # a folder of checkpoints whose newest to go on from, of a run of other settings; empty: none
    steps: int  # optimizer steps; 0 takes the weights of `start_from` as they are
    batch_size: int  # sequences a step
    micro_batch_size: int  # sequences at a time; gradients add up to batch_size
    recompute_activations: bool  # less memory for a third more work: `llm.model.transformer`
    packing: Literal["windows", "documents", "documents_once"]  # how text falls into sequences: llm/batches.py
    mask_documents: bool  # documents in one sequence do not see each other
    optimizer: Literal["adamw", "adamw_reference", "muon"]
    lr: float  # peak learning rate
    muon_lr: float  # muon: peak learning rate of the hidden matrices; the rest has lr
    schedule: Literal["cosine", "wsd", "constant"]
    final_lr_share: float  # cosine, wsd: of the peak, at the last step
    warmup_steps: int
    decay_share: float  # wsd: of all steps, at the end, over which the rate falls
    beta1: float
    beta2: float
    weight_decay: float
    grad_clip: float  # largest gradient norm
    on_nonfinite: Literal["stop", "skip"]  # what to do with a step whose loss or gradient is not finite
    max_skips: int  # skip: stop at the one after so many
    seed: int  # of the starting weights and of the order of the batches
    log_every: int  # steps
    eval_every: int  # steps
    eval_documents: int  # validation documents scored during training
    sample_every: int  # steps
    checkpoint_every: int  # steps
    checkpoints_kept: int  # the newest, besides the best
    parallel: ParallelKind  # how several processes share a batch: llm/parallel.py
    processes: int  # ddp, fsdp2: how many, on all machines together

    def __post_init__(self) -> None:
        check_limits(self, {})
        if self.steps < 0 or (self.steps == 0 and not self.start_from):
            raise ConfigError("steps", f"{self.steps} is not positive (0 is for weights named by start_from)")
        for name in ("batch_size", "micro_batch_size", "lr", "muon_lr", "grad_clip"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, f"{getattr(self, name)} is not positive")
        for name in (
            "log_every",
            "eval_every",
            "eval_documents",
            "sample_every",
            "checkpoint_every",
            "checkpoints_kept",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"{getattr(self, name)} is below 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(name, f"{getattr(self, name)} is not in [0, 1)")
        if self.batch_size % self.micro_batch_size:
            raise ConfigError("micro_batch_size", f"{self.micro_batch_size} does not divide {self.batch_size}")
        if self.processes < 1:
            raise ConfigError("processes", f"{self.processes} is below 1")
        if self.parallel == "none" and self.processes > 1:
            raise ConfigError("processes", f"{self.processes} need parallel: ddp or fsdp2; with none there is 1")
        if self.batch_size % (self.processes * self.micro_batch_size):
            raise ConfigError(
                "processes",
                f"{self.processes} with micro_batch_size {self.micro_batch_size} do not divide batch_size "
                f"{self.batch_size}; lower micro_batch_size, or make batch_size a multiple of "
                f"{self.processes * self.micro_batch_size}",
            )
        if self.parallel == "fsdp2" and self.optimizer not in ELEMENTWISE:
            raise ConfigError(
                "parallel", f"fsdp2 shards the matrices that {self.optimizer} needs whole; use ddp, or adamw"
            )
        if not 0 <= self.final_lr_share <= 1:
            raise ConfigError("final_lr_share", f"{self.final_lr_share} is not between 0 and 1")
        if not 0 < self.decay_share <= 1:
            raise ConfigError("decay_share", f"{self.decay_share} is not above 0 and at most 1")
        for name in ("weight_decay", "max_skips"):
            if getattr(self, name) < 0:
                raise ConfigError(name, f"{getattr(self, name)} is negative")
        check_limits(self, LIMITS)
        if self.warmup_steps < 0 or 0 < self.steps < self.warmup_steps:
            raise ConfigError("warmup_steps", f"{self.warmup_steps} is not between 0 and steps ({self.steps})")
