"""Muon: orthogonal updates against the singular value decomposition, part by part; AdamW for the rest."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.optim.muon import MOMENTUM, POLYNOMIALS, Muon, orthogonalised, part_sizes


def with_singular_values(rows: int, columns: int, values: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A matrix with these singular values, and the orthogonal matrix nearest to it."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    u = torch.linalg.qr(torch.randn(rows, n, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, n, generator=generator, dtype=torch.float64)).Q
    return (u * values.double() @ v.T).float(), (u @ v.T).float()


@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (96, 32), (32, 96), (5, 1)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 0.13), (torch.bfloat16, 0.22)])
def test_singular_values_come_near_1_and_directions_stay(
    rows: int, columns: int, dtype: torch.dtype, error: float
) -> None:
    values = torch.logspace(0, -2, min(rows, columns)) * 3e4  # of any size: only their ratios matter
    matrix, nearest = with_singular_values(rows, columns, values, seed=1)
    result = orthogonalised(matrix[None], dtype)[0]
    found = torch.linalg.svdvals(result)
    assert 1 - error < found.min()
    assert found.max() < 1 + error
    # U and V are kept: Uᵀ result V is diagonal, so that what is off the nearest orthogonal matrix is the values' error.
    assert (result - nearest).norm() < error * nearest.norm()


def test_a_batch_is_each_of_its_matrices() -> None:
    torch.manual_seed(1)
    matrices = torch.randn(3, 8, 20)
    for one, matrix in zip(orthogonalised(matrices), matrices, strict=True):
        torch.testing.assert_close(one, orthogonalised(matrix[None])[0], atol=1e-5, rtol=0)


def test_the_polynomials_are_the_minimax_ones() -> None:
    """Chebyshev: the best odd polynomial of degree five errs by the same amount at four points, signs alternating."""
    low, high = 1e-3, 1.0
    for polynomial in POLYNOMIALS:
        high *= 1.01
        points = [low, (3 * low + high) / 4, (low + 3 * high) / 4, high]
        for _ in range(50):
            rows = [[x, x**3, x**5, sign] for x, sign in zip(points, (1, -1, 1, -1), strict=True)]
            a, b, c, error = np.linalg.solve(np.array(rows), np.ones(4))
            points[1:3] = sorted(np.sqrt(np.roots([5 * c, 3 * b, a]).real))
        assert polynomial == pytest.approx((a, b, c), abs=6e-5)
        low, high = 1 - error, 1 + error
    assert error < 0.13


def test_every_hidden_matrix_and_nothing_else_is_orthogonalised(tiny_config: ModelConfig) -> None:
    model = Transformer(replace(tiny_config, tie_head=False), 64)
    muon = Muon(model, 1e-3, 0.02, (0.9, 0.99), 0.1)
    hidden, decayed, kept = (group["params"] for group in muon.param_groups)
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert all(names[id(w)].startswith("blocks.") and w.ndim == 2 for w in hidden)
    assert {names[id(w)] for w in decayed} == {"embedding.weight", "head.weight"}
    assert all(w.ndim == 1 for w in kept)
    assert len(hidden) + len(decayed) + len(kept) == len(names)


def test_the_first_update_is_orthogonal_part_by_part(tiny_config: ModelConfig) -> None:
    model = Transformer(tiny_config, 64)
    model.initialise(1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)
    lr, decay = 0.01, 0.1
    muon = Muon(model, 1e-3, lr, (0.9, 0.99), decay)
    for group in muon.param_groups:
        group["lr"] = group["peak"]
    muon.step()
    checked = 0
    for name, weight in model.named_parameters():
        if not (name.startswith("blocks.") and weight.ndim == 2):
            continue
        sizes = part_sizes(name, len(weight), tiny_config)
        assert len(sizes) == (3 if "qkv" in name else 2 if "gate_up" in name else 1)
        update = before[name] * (1 - lr * decay) - weight.detach()
        for part in update.split(sizes):
            scale = lr * math.sqrt(max(1, part.shape[0] / part.shape[1]))
            values = torch.linalg.svdvals(part) / scale
            assert 0.8 < values.min() < values.max() < 1.15
            checked += 1
    assert checked == 2 * (3 + 1 + 2 + 1)


def test_the_momentum_is_nesterovs(tiny_config: ModelConfig) -> None:
    model = Transformer(tiny_config, 64)
    muon = Muon(model, 1e-3, 0.02, (0.9, 0.99), 0.0)
    weight = model.blocks[0].attention.out.weight
    gradients = [torch.randn(weight.shape, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    mean = torch.zeros_like(weight)
    for gradient in gradients:
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        before = weight.detach().clone()
        for other in model.parameters():
            other.grad = gradient.clone() if other is weight else torch.zeros_like(other)
        muon.step()
        ahead = MOMENTUM * mean + (1 - MOMENTUM) * gradient
        update = (before - weight.detach()) / muon.param_groups[0]["lr"]
        torch.testing.assert_close(update, orthogonalised(ahead[None])[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(muon.state[weight]["momentum"], mean, atol=1e-5, rtol=0)
