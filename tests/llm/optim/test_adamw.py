"""AdamW by hand against torch's, and which weights decay."""

import torch

from llm.model.transformer import Transformer
from llm.optim.adamw import AdamWReference, adamw, groups


def test_the_reference_equals_torch_over_100_steps() -> None:
    torch.manual_seed(1)
    starts = [0.3 * torch.randn(shape) for shape in ((7, 5), (5,), (3, 2, 4))]
    sides = []
    for by_hand in (True, False):
        weights = [torch.nn.Parameter(start.clone()) for start in starts]
        both = [
            {"params": weights[:1], "weight_decay": 0.1},
            {"params": weights[1:], "weight_decay": 0.0},
        ]
        betas = (0.9, 0.95)
        optimizer = AdamWReference(both, 0.01, betas) if by_hand else torch.optim.AdamW(both, 0.01, betas, eps=1e-8)
        generator = torch.Generator().manual_seed(2)
        for step in range(100):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 - step / 200)
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator) + 0.3 * weight.detach()
            optimizer.step()
        sides.append(weights)
    for one, other in zip(*sides, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_only_matrices_decay(tiny_model: Transformer) -> None:
    decayed, kept = adamw(tiny_model, 1e-3, (0.9, 0.99), 0.1).param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert {w.ndim for w in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(tiny_model.parameters()))


def test_without_a_gradient_matrices_shrink_and_norms_stay(tiny_model: Transformer) -> None:
    before = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    for weight in tiny_model.parameters():
        weight.grad = torch.zeros_like(weight)
    AdamWReference(groups(tiny_model, 0.5, 0.1), 0.5, (0.9, 0.99)).step()
    for name, weight in tiny_model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] * (0.95 if weight.ndim > 1 else 1.0))
