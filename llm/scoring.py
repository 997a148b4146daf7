"""Log-probabilities of given tokens: what evaluation, DPO and its reference all compute, written once.

Blocks run in the compute's format; the head and the softmax run in fp32, and only at the positions that are asked
for, since a rounded logit costs a sum of log-probabilities its second decimal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llm.compute import Compute
from llm.model.transformer import Transformer


@dataclass(frozen=True)
class Segment:
    """A run of tokens, of which those from position `first` on are scored given all before; 1 <= first < len."""

    tokens: np.ndarray
    first: int


def logprobs(model: Transformer, segments: Sequence[Segment], compute: Compute) -> Tensor:
    """Sum of log-probabilities in nats of each segment's scored tokens, (len(segments),), differentiable."""
    longest = max(len(s.tokens) for s in segments)
    ids = np.zeros((len(segments), longest), dtype=np.int64)  # causal: padding on the right is never looked at
    scored = np.zeros((len(segments), longest), dtype=bool)
    for row, segment in enumerate(segments):
        ids[row, : len(segment.tokens)] = segment.tokens
        scored[row, segment.first : len(segment.tokens)] = True
    tokens = torch.from_numpy(ids).to(compute.device)
    mask = torch.from_numpy(scored[:, 1:]).to(compute.device)
    with compute.autocast():
        states = model.hidden(tokens[:, :-1])
    logits = model.head(states[mask].float())  # (scored tokens, V)
    each = -F.cross_entropy(logits, tokens[:, 1:][mask], reduction="none")
    rows = mask.nonzero()[:, 0]
    return torch.zeros(len(segments), device=compute.device).index_add(0, rows, each)


@torch.no_grad()
def score(model: Transformer, segments: Sequence[Segment], compute: Compute, tokens_at_once: int = 8192) -> np.ndarray:
    """`logprobs` of any number of segments, in batches of like lengths; float64, in the order given."""
    order = sorted(range(len(segments)), key=lambda i: (len(segments[i].tokens), i))
    result = np.zeros(len(segments))
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(segments[order[end]].tokens) <= tokens_at_once:
            end += 1
        batch = order[start:end]
        result[batch] = logprobs(model, [segments[i] for i in batch], compute).double().cpu().numpy()
        start = end
    return result
