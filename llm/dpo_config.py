"""The section `dpo`: how the policy is tuned. Free of torch, so that a check of params.yaml is fast."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm.errors import ConfigError
from llm.limits import SEED, check_limits

LIMITS = {"epochs": (1, 1_000_000), "batch_size": (1, 1_048_576), "seed": SEED}
ScopeName = Literal["answers", "fork"]
LossName = Literal["sigmoid", "hinge", "ipo", "sigmoid_norm"]


@dataclass(frozen=True)
class DPOConfig:
    """Raises ConfigError."""

    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ("checkpoint_every",)  # on any byte of the outputs

    scope: ScopeName  # score the whole answers, or only the token in which they part (`llm.pair_scoring`)
    loss: LossName  # `llm.dpo_losses.LOSSES`
    label_smoothing: float  # sigmoid: share of pairs believed to stand the wrong way round
    beta: float  # how dear it is to leave the reference
    sft_weight: float  # of the chosen answers' own loss, nats per token; 0 is plain DPO
    lr: float  # peak learning rate
    final_lr_share: float
    warmup_steps: int
    epochs: int
    batch_size: int  # texts a step: pairs, or in the scope `fork` all the pairs that share a text
    weight_decay: float
    grad_clip: float
    seed: int  # of the order of the pairs
    log_every: int  # steps
    eval_every: int  # steps
    checkpoint_every: int  # steps

    def __post_init__(self) -> None:
        check_limits(self, {})
        for name in ("beta", "lr", "epochs", "batch_size", "grad_clip", "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, f"{getattr(self, name)} is not positive")
        for name in ("sft_weight", "warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(name, f"{getattr(self, name)} is negative")
        check_limits(self, LIMITS)
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                "label_smoothing", f"{self.label_smoothing} is not in [0, 0.5); at a half nothing is learnt"
            )
        if self.label_smoothing and self.loss != "sigmoid":
            raise ConfigError("label_smoothing", f"is read by the loss sigmoid alone, not by {self.loss}; set it to 0")
        if not 0 <= self.final_lr_share <= 1:
            raise ConfigError("final_lr_share", f"{self.final_lr_share} is not between 0 and 1")
