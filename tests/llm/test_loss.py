"""The chunked loss against torch's own, value and gradients."""

import pytest
import torch
from torch.nn import functional as F

from llm.loss import CHUNK, next_token_loss


@pytest.mark.parametrize("length", [1, 7, CHUNK // 3, CHUNK])
def test_equals_the_plain_cross_entropy(length: int) -> None:
    torch.manual_seed(length)
    states = torch.randn(3, length, 16, requires_grad=True)
    head = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (3, length))
    ours = next_token_loss(states, head, targets)
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
