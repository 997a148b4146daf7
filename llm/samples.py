"""Text that the models write, side by side, for people to read."""

from dataclasses import dataclass

from llm.errors import ConfigError
from llm.limits import SEED, check_limits
from llm.sampling_config import Sampling


@dataclass(frozen=True)
class SamplesConfig:
    """Raises ConfigError."""

    prompts: tuple[str, ...]  # own beginnings; none: the openings of held-out documents
    count: int  # openings to take where there are no own prompts
    opening_characters: int  # at most that many of a document, cut at a word
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    stop: tuple[str, ...]  # a text ends before the first of these
    seed: int

    def __post_init__(self) -> None:
        check_limits(self, {"seed": SEED})
        for name in ("count", "opening_characters", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"{getattr(self, name)} is below 1")
        if any(not prompt.strip() for prompt in self.prompts):
            raise ConfigError("prompts", "one of them is empty; give some text to begin with")
        if "" in self.stop:
            raise ConfigError("stop", "one of them is empty; give the text to stop at")
        _ = self.sampling  # it checks its own limits

    @property
    def sampling(self) -> Sampling:
        """How each next token is drawn."""
        return Sampling(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
        )

    def cut(self, text: str) -> str:
        """`text` up to the stop string that is complete first."""
        from llm.generate import stop_place  # only here: it needs torch, and a check of params.yaml does not

        return text[: stop_place(text, self.stop)]


def opening(text: str, characters: int) -> str:
    """The beginning of `text`, at most so many characters, ending before a space or line end where there is one."""
    if len(text) <= characters:
        characters = max(1, len(text) // 2)
    cut = max(text.rfind(" ", 1, characters + 1), text.rfind("\n", 1, characters + 1))
    return text[: cut if cut > 0 else characters]
