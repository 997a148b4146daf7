"""Next-token cross-entropy that never holds all logits.

The head's product, the softmax and its gradient are done for `CHUNK` positions at a time, while they are in the
cache, and the gradient is computed on the way forward: for a vocabulary of V it needs CHUNK · V numbers rather than
three times B · T · V. On two CPU cores with V = 2048 it takes half the time of the plain way (docs/LOG.md,
2026-11-21). A test holds the two equal. What happens to the logits between the products is apart, so that it can go
through torch.compile, which makes one pass of it.

`token_logprobs` gives every token's log-probability, to be summed and weighted by what comes after it. Its gradient
cannot be had on the way forward, so the chunks' logits are computed again on the way back.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

CHUNK = 512  # positions at a time

# Of logits (N, V), targets (N, 1) and a divisor: the sum of the losses, fp32, and the logits' gradient over the divisor
Softmax = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def next_token_loss(states: Tensor, head: Tensor, targets: Tensor, compiled: bool = False) -> Tensor:
    """Mean cross-entropy in nats of `targets` (B, T) under states (B, T, D) and head weights (V, D).

    Under autocast the products run in its format; the softmax and all sums are fp32. `compiled` takes the softmax
    through torch.compile.
    """
    softmax = _compiled_softmax() if compiled else softmax_in_place
    return _Loss.apply(states.flatten(0, 1), head, targets.flatten(), softmax)


def softmax_in_place(logits: Tensor, targets: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """A `Softmax` of few passes and little memory."""
    gradient = logits.float()
    normaliser = gradient.logsumexp(dim=-1, keepdim=True)
    loss = (normaliser - gradient.gather(1, targets)).sum()
    # d loss / d logits = softmax - one-hot, in the place of the logits
    gradient.sub_(normaliser).exp_()
    gradient.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=gradient.dtype))
    return loss, gradient.div_(divisor).to(logits.dtype)


def softmax_to_fuse(logits: Tensor, targets: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """A `Softmax` for torch.compile: row by row in the cache, one exponential for each logit."""
    raw = logits.float()
    largest = raw.amax(dim=-1, keepdim=True)
    shares = (raw - largest).exp()
    total = shares.sum(dim=-1, keepdim=True)
    loss = (largest + total.log() - raw.gather(1, targets)).sum()
    here = torch.arange(raw.shape[1], device=raw.device) == targets
    return loss, (shares / (total * divisor) - here / divisor).to(logits.dtype)


@cache
def _compiled_softmax() -> Softmax:
    return torch.compile(softmax_to_fuse)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, targets: Tensor, softmax: Softmax) -> Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        N = len(states)
        divisor = 1 if dtype == torch.float16 else N  # fp16 cannot hold a probability divided by N: there, divide late
        x, weights = states.to(dtype), head.to(dtype)
        states_grad = torch.empty_like(x)
        head_grad = torch.empty_like(head)
        total = torch.zeros((), device=states.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, N, CHUNK):
                part, wanted = x[start : start + CHUNK], targets[start : start + CHUNK, None]
                loss, scaled = softmax(part @ weights.T, wanted, divisor)
                total += loss
                torch.mm(scaled, weights, out=states_grad[start : start + CHUNK])
                product = scaled.T @ part
                head_grad.copy_(product) if start == 0 else head_grad.add_(product)
        states_grad = states_grad.to(states.dtype)
        if divisor != N:
            states_grad, head_grad = states_grad.div_(N), head_grad.div_(N)
        ctx.save_for_backward(states_grad, head_grad)
        return total / N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        states_grad, head_grad = ctx.saved_tensors
        return states_grad * grads[0], head_grad * grads[0], None, None


def token_logprobs(states: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities in nats of `targets` (N,) under states (N, D) and head weights (V, D): (N,), fp32.

    Always from fp32 products, since a rounded logit costs a sum of log-probabilities its second decimal. Under autocast
    the products of the gradient, which is only a direction, run in autocast's format.
    """
    return _LogProbs.apply(states.float(), head, targets)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        device = states.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        found, normalisers = torch.empty_like(states[:, 0]), torch.empty_like(states[:, 0])
        with torch.autocast(device, enabled=False):
            for start in range(0, len(states), CHUNK):
                chunk = slice(start, start + CHUNK)
                logits = states[chunk] @ head.T
                wanted = logits.gather(1, targets[chunk, None])[:, 0]
                normalisers[chunk] = logits.logsumexp(dim=-1)
                found[chunk] = wanted - normalisers[chunk]
        ctx.save_for_backward(states, head, targets, normalisers)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        states, head, targets, normalisers = ctx.saved_tensors
        x, weights = states.to(ctx.dtype), head.to(ctx.dtype)
        states_grad, head_grad = torch.empty_like(x), torch.zeros_like(head)
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(states), CHUNK):
                chunk = slice(start, start + CHUNK)
                scale = grads[0][chunk, None]
                # d logprob / d logits = one-hot - softmax, in the place of the logits
                gradient = (x[chunk] @ weights.T).float().sub_(normalisers[chunk, None]).exp_().mul_(-scale)
                gradient.scatter_add_(1, targets[chunk, None], scale)
                scaled = gradient.to(ctx.dtype)
                torch.mm(scaled, weights, out=states_grad[chunk])
                head_grad += scaled.T @ x[chunk]
        return states_grad.to(states.dtype), head_grad, None
