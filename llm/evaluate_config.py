"""The section `evaluate`: what is measured. Free of torch, so that a check of params.yaml is fast."""

from dataclasses import dataclass

from llm.errors import ConfigError
from llm.limits import SEED, check_limits

LONGEST_NGRAM = 1_000  # words
NOUGHT = {"stride": "half the context"}


@dataclass(frozen=True)
class EvaluateConfig:
    """Raises ConfigError."""

    documents: int  # of val and of test each, evenly spaced; 0 = all; of train, as many as of val
    stride: int  # tokens by which windows advance over documents longer than the context; 0 = half the context
    ngrams: tuple[int, ...]  # words in a row that are looked for in the training text; none: no such check
    minimal_pairs: tuple[str, ...]  # paths and globs of files in BLiMP's format (`llm.minimal_pairs`)
    pairs: int  # held-out preference pairs; 0 = all
    stories: int  # stories to write and judge, each for base and DPO; only for the embedded corpus
    temperature: float  # of those stories
    seed: int  # of those stories and of the bootstrap

    def __post_init__(self) -> None:
        for name in ("documents", "stride", "pairs", "stories"):
            if getattr(self, name) < 0:
                raise ConfigError(name, f"{getattr(self, name)} is negative; 0 means {NOUGHT.get(name, 'all')}")
        if any(not 1 <= n <= LONGEST_NGRAM for n in self.ngrams) or len(set(self.ngrams)) < len(self.ngrams):
            raise ConfigError(
                "ngrams", f"{list(self.ngrams)}: numbers of words, each once, from 1 to {LONGEST_NGRAM:,}"
            )
        check_limits(self, {"seed": SEED})
        if self.temperature < 0:
            raise ConfigError("temperature", f"{self.temperature} is negative; 0 is greedy")
