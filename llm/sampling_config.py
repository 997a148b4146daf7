"""The settings of sampling. Free of torch, so that a check of params.yaml is fast; `llm.sampling` draws by them."""

from dataclasses import dataclass

from llm.errors import ConfigError
from llm.limits import check_limits

MAX_TEMPERATURE = 1000.0  # all tokens are about equally likely there
REPETITION_PENALTIES = (0.01, 100.0)  # logits divided by less, or multiplied by more, may overflow


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Raises ConfigError."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # 1 keeps all
    min_p: float = 0.0  # 0 keeps all
    repetition_penalty: float = 1.0  # above 1 against repeating; 1 is none
    presence_penalty: float = 0.0  # in logits
    frequency_penalty: float = 0.0  # in logits, for each time

    def __post_init__(self) -> None:
        check_limits(self, {})
        # Each check names what is allowed, since NaN is neither below nor above a limit.
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            problem = "is negative" if self.temperature < 0 else f"is not in [0, {MAX_TEMPERATURE:g}]"
            raise ConfigError("temperature", f"{self.temperature} {problem}; 0 is greedy")
        if not self.top_k >= 0:
            raise ConfigError("top_k", f"{self.top_k} is negative; 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", f"{self.top_p} is not in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ConfigError("min_p", f"{self.min_p} is not in [0, 1]; 0 keeps all tokens")
        least, most = REPETITION_PENALTIES
        if not least <= self.repetition_penalty <= most:
            raise ConfigError(
                "repetition_penalty", f"{self.repetition_penalty} is not in [{least:g}, {most:g}]; 1 is none"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ConfigError(name, f"{getattr(self, name)} is not in [-2, 2]; 0 is none")

    @property
    def penalises(self) -> bool:
        """What stands in the text matters to what follows."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)
