"""Sampling: temperature, top-k and top-p, from prompts of any lengths in one batch, with a cache of fixed size.

Each prompt has a random stream of its own, drawn from (seed, its number), so what a prompt becomes does not depend on
how many others it is sampled with. A token is drawn by inverting the cumulative distribution at one uniform number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.compute import Compute
from llm.errors import ConfigError, WordmillError
from llm.model.transformer import Cache, Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Filters apply in this order: temperature, top-k, top-p. Raises ConfigError."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # keep the k likeliest; 0 keeps all
    top_p: float = 1.0  # keep the fewest likeliest whose shares reach p

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError("temperature", f"{self.temperature} is negative; 0 is greedy")
        if self.top_k < 0:
            raise ConfigError("top_k", f"{self.top_k} is negative; 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", f"{self.top_p} is not in (0, 1]")


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    stop: int,
    compute: Compute,
    rows_at_once: int = 256,
) -> list[list[int]]:
    """Continue each prompt (token ids, at least one) until the token `stop`, which is left out, or the limit.

    The limit is `max_new_tokens` or what the model's context leaves after the prompt, whichever is less. Raises
    WordmillError for a prompt that fills the context.
    """
    block_size = model.config.block_size
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < block_size:
            raise WordmillError(
                f"prompt {number + 1} has {len(prompt)} tokens; the context holds 1 to {block_size - 1}"
            )
    training = model.training
    model.to(compute.device).eval()
    written: list[list[int]] = []
    for start in range(0, len(prompts), rows_at_once):
        part = prompts[start : start + rows_at_once]
        streams = [_uniforms(seed, start + row, max_new_tokens) for row in range(len(part))]
        written += _generate_batch(model, part, torch.stack(streams), sampling, stop, compute)
    model.train(training)
    return written


def _generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    sampling: Sampling,
    stop: int,
    compute: Compute,
) -> list[list[int]]:
    device = compute.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    block_size = model.config.block_size
    room = min(block_size, int(lengths.max()) + uniforms.shape[1])
    written: list[list[int]] = [[] for _ in prompts]
    going = torch.arange(len(prompts), device=device)  # rows still being written
    with compute.autocast():
        cache = Cache(model.config, len(prompts), room, torch.empty(0, dtype=compute.dtype, device=device))
        states = model.hidden(ids.to(device), cache)
        cache.lengths.copy_(lengths)  # padding written past a prompt's end is overwritten before it is ever seen
        last = states[going, lengths - 1]
        for position in range(uniforms.shape[1]):
            tokens = draw(model.head(last).float(), uniforms[going.cpu(), position].to(device), sampling)
            alive = []
            for place, (row, token) in enumerate(zip(going.tolist(), tokens.tolist(), strict=True)):
                if token == stop:
                    continue
                written[row].append(token)
                if len(prompts[row]) + len(written[row]) < block_size:
                    alive.append(place)
            if not alive:
                break
            if len(alive) < len(going):
                keep = torch.tensor(alive, device=device)
                going, tokens = going[keep], tokens[keep]
                cache.keep(keep)
            last = model.hidden(tokens[:, None], cache)[:, -1]
    return written


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """One token a row from logits (B, V) and uniform numbers (B,)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = filtered(logits / sampling.temperature, sampling)
    shares = logits.double().softmax(dim=-1).cumsum(dim=-1)
    places = torch.searchsorted(shares, (uniforms.double() * shares[:, -1])[:, None], right=True)
    return places[:, 0].clamp(max=logits.shape[-1] - 1)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, V) with what top-k and then top-p exclude at minus infinity."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        shares = ordered.softmax(dim=-1)
        excluded = shares.cumsum(dim=-1) - shares >= sampling.top_p  # what stands before it already reaches p
        logits = logits.masked_fill(excluded.scatter(-1, places, excluded), float("-inf"))
    return logits


def _uniforms(seed: int, number: int, count: int) -> Tensor:
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) % 2**63
    return torch.rand(count, generator=torch.Generator().manual_seed(mixed), dtype=torch.float64)
