"""How the next token is drawn: penalties, temperature, filters, and one uniform number.

The order is that of `transformers` (5.23): repetition penalty, temperature, top-k, top-p, min-p. The two penalties that
`transformers` does not have come behind its own one, as vLLM has them. Penalties come before greedy choice too; the
filters do not change it.

- repetition (Keskar et al. 2019, CTRL, arXiv:1909.05858): a logit of a token in the prompt or in what was written is
  divided by it, or multiplied if it is negative. `transformers`' meaning of the sign.
- frequency and presence (OpenAI's API reference): a logit falls by frequency × (how often the token was written) +
  presence × (whether it was). The prompt does not count.
- top-k (Fan et al. 2018, arXiv:1805.04833): the k likeliest, and whatever is as likely as the last of them.
- top-p (Holtzman et al. 2020, arXiv:1904.09751): the fewest likeliest whose shares reach p.
- min-p (Nguyen et al. 2024, arXiv:2407.01082): those at least p times as likely as the likeliest.

A token is drawn by inverting the cumulative distribution at a uniform number, and each prompt has a stream of them of
its own: so what a prompt becomes does not depend on what it is sampled with.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm.devices import as_float64, cumulative_sums
from llm.sampling_config import Sampling


class History:
    """What the penalties have to know of each row."""

    def __init__(self, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> None:
        self.read = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)  # in prompt or text
        self.counts = torch.zeros(len(prompts), vocab_size, device=device)  # how often it was written
        for row, prompt in enumerate(prompts):
            self.read[row, torch.tensor(prompt, device=device)] = True

    def add(self, tokens: Tensor) -> None:
        """One token (B,) for each row was written."""
        places = tokens[:, None]
        self.read.scatter_(1, places, True)
        self.counts.scatter_add_(1, places, torch.ones_like(places, dtype=self.counts.dtype))

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        self.read, self.counts = self.read[rows], self.counts[rows]

    def penalised(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """Logits (B, V) after the three penalties."""
        penalty = sampling.repetition_penalty
        lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
        logits = torch.where(self.read, lowered, logits)
        logits = logits - sampling.frequency_penalty * self.counts
        return logits - sampling.presence_penalty * (self.counts > 0)


def of_tokens(logits: Tensor, vocab_size: int | None) -> Tensor:
    """Logits (B, V) of the ids below `vocab_size`, the tokenizer's: a padded model has more, and no token has those."""
    return logits if vocab_size is None else logits[:, :vocab_size]


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """One token a row from logits (B, V), after any penalties, and uniform numbers (B,), on any device."""
    if sampling.temperature < 1e-6:  # dividing by less may overflow, and it is greedy anyhow
        return logits.argmax(dim=-1)
    logits = filtered(logits / sampling.temperature, sampling)
    shares = cumulative_sums(as_float64(logits).softmax(dim=-1))
    wanted = uniforms.to(shares.device).double() * shares[:, -1]
    places = torch.searchsorted(shares, wanted[:, None], right=True)
    return places[:, 0].clamp(max=logits.shape[-1] - 1).to(logits.device)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, V) with what top-k, then top-p, then min-p exclude at minus infinity."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        shares = ordered.softmax(dim=-1)
        excluded = cumulative_sums(shares) - shares >= sampling.top_p  # what stands before it already reaches p
        excluded[:, 0] = False  # the likeliest stays, though p may be 0 in fp32
        logits = logits.masked_fill(excluded.scatter(-1, places, excluded), float("-inf"))
    if sampling.min_p > 0:
        shares = logits.softmax(dim=-1)
        logits = logits.masked_fill(shares < sampling.min_p * shares.amax(dim=-1, keepdim=True), float("-inf"))
    return logits


class Uniforms:
    """A prompt's endless stream of numbers in [0, 1): a function of `seed` and `number` alone."""

    AHEAD = 64

    def __init__(self, seed: int, number: int = 0) -> None:
        mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) % 2**63
        self._generator = torch.Generator().manual_seed(mixed)
        self._ready: list[float] = []

    def next(self) -> float:
        """The next number."""
        if not self._ready:
            drawn = torch.rand(self.AHEAD, generator=self._generator, dtype=torch.float64)
            self._ready = drawn.tolist()[::-1]
        return self._ready.pop()
