"""The chunked loss against torch's own, value and gradients."""

import pytest
import torch
from torch.nn import functional as F

from llm.loss import CHUNK, next_token_loss, softmax_to_fuse, token_logprobs


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("length", [1, 7, CHUNK // 3, CHUNK])
def test_equals_the_plain_cross_entropy(length: int, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fused`: what is handed to torch.compile, as it is; that takes seconds, and is tried by the benchmark."""
    monkeypatch.setattr("llm.loss._compiled_softmax", lambda: softmax_to_fuse)
    torch.manual_seed(length)
    states = torch.randn(3, length, 16, requires_grad=True)
    head = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (3, length))
    ours = next_token_loss(states, head, targets, compiled=fused)
    plain = F.cross_entropy((states @ head.T).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(ours, plain)
    for one, other in zip(
        torch.autograd.grad(3 * ours, [states, head]), torch.autograd.grad(3 * plain, [states, head]), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_in_bf16_it_is_as_near_to_fp32_as_bf16_allows() -> None:
    torch.manual_seed(1)
    states = torch.randn(2, 300, 32, requires_grad=True)
    head = torch.randn(64, 32, requires_grad=True)
    targets = torch.randint(0, 64, (2, 300))
    exact = next_token_loss(states, head, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = next_token_loss(states, head, targets)
    assert abs(rounded.item() - exact.item()) < 0.01 * exact.item()
    for one, other in zip(
        torch.autograd.grad(rounded, [states, head]), torch.autograd.grad(exact, [states, head]), strict=True
    ):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("count", [1, CHUNK, CHUNK + 3])
def test_logprobs_of_tokens_and_their_gradients_are_those_of_the_whole_softmax(count: int) -> None:
    torch.manual_seed(count)
    states, head = torch.randn(count, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets, weights = torch.randint(0, 50, (count,)), torch.randn(count)
    ours = token_logprobs(states, head, targets)
    plain = (states @ head.T).log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(ours, plain)
    gradients = [torch.autograd.grad((weights * each).sum(), [states, head]) for each in (ours, plain)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_logprobs_are_exact_under_bf16_and_their_gradients_as_near_as_it_allows() -> None:
    torch.manual_seed(1)
    states, head = torch.randn(600, 32, requires_grad=True), torch.randn(64, 32, requires_grad=True)
    targets = torch.randint(0, 64, (600,))
    exact = token_logprobs(states, head, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logprobs(states, head, targets)
    assert torch.equal(found, exact)
    gradients = [torch.autograd.grad(each.sum(), [states, head]) for each in (found, exact)]
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == torch.float32
        assert 0 < (one - other).norm() < 0.02 * other.norm()
