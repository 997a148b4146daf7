"""Log-probabilities of given tokens: what evaluation, DPO and its reference all compute, written once.

Blocks run in the compute's format; the head and the softmax run in fp32, and only at the positions that are asked
for, since a rounded logit costs a sum of log-probabilities its second decimal. They run for `CHUNK` positions at a
time, so that no more logits than that are ever held.

On a GPU batches are padded to few different shapes (`llm.devices`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm.compute import Compute
from llm.devices import LENGTHS, ROWS, as_float64, memory_for, rounded_up
from llm.loss import CHUNK, token_logprobs
from llm.model.exact import unknown_mixer
from llm.model.packing import Packing
from llm.model.transformer import Transformer


@dataclass(frozen=True)
class Segment:
    """A run of tokens, of which those from position `first` on are scored given all before; 1 <= first < len."""

    tokens: np.ndarray
    first: int


@dataclass(frozen=True)
class Predictions:
    """What a model says of scored tokens, one entry each, segment after segment."""

    logprobs: np.ndarray  # float64, nats, of the token that came
    confidence: np.ndarray  # float64, the probability of the likeliest token
    correct: np.ndarray  # bool: the token that came was the likeliest


def pair_logprobs(
    model: Transformer, chosen: Sequence[Segment], rejected: Sequence[Segment], compute: Compute
) -> Tensor:
    """Sums of log-probabilities in nats of the scored tokens of B pairs of segments, (2, B), differentiable.

    What the two of a pair begin with is read once (`llm.model.packing`), unless the model has parts of which it is not
    known that only attention mixes tokens.
    """
    if unknown_mixer(model) is not None:
        return _summed(model, [*chosen, *rejected], compute).view(2, -1)
    pairs = zip(chosen, rejected, strict=True)
    packing = Packing([(one.tokens[:-1], other.tokens[:-1]) for one, other in pairs], compute.device)
    segments = [*chosen, *rejected]
    before = [packing.sources[row, s.first - 1 : len(s.tokens) - 1] for row, s in enumerate(segments)]
    targets = torch.from_numpy(np.concatenate([segment.tokens[segment.first :] for segment in segments]))
    rows = torch.from_numpy(np.repeat(np.arange(len(segments)), list(map(len, before))))
    with compute.autocast():
        states = model.hidden(packing.ids, packing=packing)[0]
        states = states[torch.from_numpy(np.concatenate(before)).to(compute.device)]
        each = token_logprobs(states, model.head.weight, targets.to(compute.device))
    sums = torch.zeros(len(segments), device=compute.device).index_add(0, rows.to(compute.device), each)
    return sums.view(2, -1)


def _summed(model: Transformer, segments: Sequence[Segment], compute: Compute) -> Tensor:
    """`pair_logprobs` of each segment by itself, in a row of its own: (len(segments),)."""
    states, targets, owners = _states(model, segments, compute)
    with compute.autocast():
        each = token_logprobs(states, model.head.weight, targets)
    return torch.zeros(len(segments), device=compute.device).index_add(0, owners, each)


def score(model: Transformer, segments: Sequence[Segment], compute: Compute, tokens_at_once: int = 8192) -> np.ndarray:
    """Sum of log-probabilities in nats of any number of segments, without gradients; float64, in the order given."""
    each = predictions(model, segments, compute, tokens_at_once).logprobs
    starts = np.cumsum([0, *(len(segment.tokens) - segment.first for segment in segments[:-1])])
    return np.add.reduceat(each, starts) if len(segments) else np.zeros(0)


@memory_for("scoring", "free the device's memory, or set compute.device: cpu")
@torch.no_grad()
def predictions(
    model: Transformer, segments: Sequence[Segment], compute: Compute, tokens_at_once: int = 8192
) -> Predictions:
    """The predictions of any number of segments' scored tokens, read in batches of like lengths."""
    counts = [len(segment.tokens) - segment.first for segment in segments]
    starts = np.cumsum([0, *counts])
    found = np.zeros((3, starts[-1]))
    order = sorted(range(len(segments)), key=lambda i: (len(segments[i].tokens), i))
    begin = 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end + 1 - begin) * _length(model, segments[order[end]], compute) <= tokens_at_once:
            end += 1
        batch = order[begin:end]
        states, targets, _ = _states(model, [segments[i] for i in batch], compute)
        parts = [_predict(model, *pair) for pair in zip(states.split(CHUNK), targets.split(CHUNK), strict=True)]
        places = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
        found[:, places] = as_float64(torch.cat(parts, dim=1)).cpu().numpy()
        begin = end
    return Predictions(found[0], found[1], found[2] > 0)


def _states(model: Transformer, segments: Sequence[Segment], compute: Compute) -> tuple[Tensor, Tensor, Tensor]:
    """Of all scored tokens: the states (N, D) in fp32 that predict them, the tokens (N,), and their segments (N,)."""
    rows = rounded_up(len(segments), ROWS, compute.device)
    longest = max(_length(model, segment, compute) for segment in segments)
    ids = np.zeros((rows, longest), dtype=np.int64)  # causal: padding on the right is never looked at
    scored = np.zeros((rows, longest), dtype=bool)
    for row, segment in enumerate(segments):
        ids[row, : len(segment.tokens)] = segment.tokens
        scored[row, segment.first : len(segment.tokens)] = True
    tokens = torch.from_numpy(ids).to(compute.device)
    places, owners = (torch.from_numpy(found).to(compute.device) for found in _places(scored[:, 1:]))
    with compute.autocast():
        states = model.hidden(tokens[:, :-1]).flatten(0, 1)
    return states[places].float(), tokens[:, 1:].flatten()[places], owners


def _length(model: Transformer, segment: Segment, compute: Compute) -> int:
    """Tokens that a segment takes in a batch; the model reads all but the last of them."""
    return 1 + rounded_up(len(segment.tokens) - 1, LENGTHS, compute.device, model.config.block_size)


def _places(scored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the true entries of (B, T): their places in the flattened array, and their rows."""
    places = np.flatnonzero(scored)
    return places, places // scored.shape[1]


def _predict(model: Transformer, states: Tensor, targets: Tensor) -> Tensor:
    """Log-probability, confidence and correctness (3, N) of targets (N,) under states (N, D)."""
    logits = model.head(states)  # (N, V)
    normaliser, highest = logits.logsumexp(dim=-1), logits.amax(dim=-1)
    target = logits.gather(1, targets[:, None])[:, 0]
    return torch.stack([target - normaliser, (highest - normaliser).exp(), (target == highest).float()])
