"""Every entry of every table of parts against the formula written out, and what holds for all of them."""

import math
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from llm.compute import Compute
from llm.errors import WordmillError
from llm.generate import Sampling, generate
from llm.model.attention import ATTENTIONS, flex_mask, reference
from llm.model.config import ModelConfig
from llm.model.feed_forward import FEED_FORWARDS, SwiGLU
from llm.model.norms import NORMS
from llm.model.positions import POSITIONS
from llm.model.transformer import Cache, Transformer

ON_ANY_DEVICE = sorted(ATTENTIONS.keys() - {"reference", "flex", "flash"})  # the others need a GPU
SHAPES = [(4, 4, 1), (4, 2, 7), (6, 1, 33), (8, 2, 64)]  # heads, key-value heads, length


def started(config: ModelConfig) -> Transformer:
    """A model whose every parameter matters."""
    model = Transformer(config, 64)
    model.initialise(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def some_ids(rows: int, length: int) -> Tensor:
    return torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(
    ("key", "table"),
    [("attention", ATTENTIONS), ("position", POSITIONS), ("norm", NORMS), ("feed_forward", FEED_FORWARDS)],
)
def test_the_configuration_names_the_tables_entries(key: str, table: dict[str, Any]) -> None:
    assert set(get_args(get_type_hints(ModelConfig)[key])) == set(table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ON_ANY_DEVICE)
@pytest.mark.parametrize(("heads", "kv_heads", "length"), SHAPES)
def test_attention_kinds_agree_with_the_reference(
    kind: str, heads: int, kv_heads: int, length: int, masked: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(length)
    inputs = [torch.randn(2, h, length, 8, dtype=dtype, requires_grad=True) for h in (heads, kv_heads, kv_heads)]
    documents = torch.randint(0, 2, (2, length)).cumsum(1) if masked else None
    outputs, gradients = [], []
    for attend in (reference, ATTENTIONS[kind]):
        y = attend(*inputs, documents)
        outputs.append(y)
        gradients.append(torch.autograd.grad((y * torch.linspace(-1, 1, 8)).sum(), inputs))
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(outputs[0], outputs[1], atol=tolerance, rtol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance if dtype == torch.bfloat16 else 0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "length"), SHAPES)
def test_flex_sees_what_the_reference_sees(heads: int, kv_heads: int, length: int, masked: bool) -> None:
    """On a CPU only its mask can be tried, by the plain implementation that torch has for looking at."""
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, h, length, 16) for h in (heads, kv_heads, kv_heads))
    documents = torch.randint(0, 2, (2, length)).cumsum(1) if masked else None
    with torch.no_grad():
        y = flex_attention(q, k, v, block_mask=flex_mask(q, documents), enable_gqa=heads != kv_heads)
    torch.testing.assert_close(y, reference(q, k, v, documents), atol=1e-5, rtol=0)


def test_flex_is_refused_where_it_cannot_train(tiny_config: ModelConfig) -> None:
    model = Transformer(replace(tiny_config, attention="flex"), 64)
    with pytest.raises(WordmillError, match=r"model\.attention: flex needs a CUDA GPU.*use fused"):
        model(some_ids(1, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex needs a CUDA GPU")
@pytest.mark.parametrize("masked", [False, True])
def test_flex_agrees_with_the_reference_on_a_gpu(masked: bool) -> None:
    torch.manual_seed(1)
    inputs = [torch.randn(2, h, 200, 32, device="cuda", requires_grad=True) for h in (8, 2, 2)]
    documents = torch.randint(0, 2, (2, 200), device="cuda").cumsum(1) if masked else None
    y, expected = ATTENTIONS["flex"](*inputs, documents), reference(*inputs, documents)
    torch.testing.assert_close(y, expected, atol=1e-2, rtol=0)  # its products are TF32
    for one, other in zip(
        torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(one, other, atol=5e-2, rtol=0)


def plain_norm(kind: str, x: Tensor, norm: nn.Module, eps: float) -> Tensor:
    if kind == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight
    return y if getattr(norm, "bias", None) is None else y + norm.bias


def plain_feed_forward(kind: str, x: Tensor, module: nn.Module) -> Tensor:
    weights = dict(module.named_parameters())
    if kind == "swiglu":
        both = x @ weights["gate_up.weight"].T + weights.get("gate_up.bias", 0)
        gate, up = both.chunk(2, -1)
        hidden = gate / (1 + (-gate).exp()) * up
    else:
        hidden = x @ weights["up.weight"].T + weights.get("up.bias", 0)
        if kind == "gelu":
            hidden = hidden / 2 * (1 + (math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)).tanh())
        else:
            hidden = hidden.clamp(min=0) ** (2 if kind == "relu2" else 1)
    return hidden @ weights["down.weight"].T + weights.get("down.bias", 0)


def plain_rotation(x: Tensor, theta: float) -> Tensor:
    """RoPE as a product of complex numbers, (B, heads, T, E)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2])[:, None] * theta ** (-torch.arange(half) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def plain_transformer(model: Transformer, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    """Logits by the formulas alone."""
    c = model.config
    x = model.embedding.weight[ids]
    for t in range(ids.shape[1]):
        if c.position == "learned":
            x[:, t] += model.position.weight[t]
        if c.position == "sinusoidal":
            for d in range(c.d_model):
                angle = t / 10_000 ** (d // 2 * 2 / c.d_model)
                x[:, t, d] += (math.sin(angle) if d % 2 == 0 else math.cos(angle)) / math.sqrt(c.d_model)
    for block in model.blocks:
        y = plain_norm(c.norm, x, block.attention_norm, c.norm_eps)
        y = F.linear(y, block.attention.qkv.weight, block.attention.qkv.bias)
        heads = y.unflatten(-1, (-1, c.d_head)).transpose(1, 2)
        q, k, v = heads.split((c.n_head, c.n_kv_head, c.n_kv_head), dim=1)
        if c.qk_norm:
            q = plain_norm(c.norm, q, block.attention.q_norm, c.norm_eps)
            k = plain_norm(c.norm, k, block.attention.k_norm, c.norm_eps)
        if c.position == "rope":
            q, k = plain_rotation(q, c.rope_theta), plain_rotation(k, c.rope_theta)
        y = reference(q, k, v, documents).transpose(1, 2).flatten(2)
        x = x + F.linear(y, block.attention.out.weight, block.attention.out.bias)
        y = plain_norm(c.norm, x, block.feed_forward_norm, c.norm_eps)
        x = x + plain_feed_forward(c.feed_forward, y, block.feed_forward)
    return plain_norm(c.norm, x, model.norm, c.norm_eps) @ model.head.weight.T


EVERY_ENTRY: list[dict[str, Any]] = [
    *({"position": name} for name in POSITIONS),
    *({"norm": name, "bias": bias, "qk_norm": bias} for name in NORMS for bias in (False, True)),
    *({"feed_forward": name, "bias": bias} for name in FEED_FORWARDS for bias in (False, True)),
    {"n_kv_head": 1, "tie_head": False},
    {"n_head": 6, "head_dim": 10, "bias": True, "qk_norm": True},
    {"n_kv_head": 4, "d_model": 36, "position": "none"},
    {"position": "learned", "norm": "layernorm", "feed_forward": "gelu", "bias": True, "n_kv_head": 4},
    {"position": "sinusoidal", "norm": "layernorm", "feed_forward": "relu", "bias": True, "n_kv_head": 4},
]


@pytest.mark.parametrize("change", EVERY_ENTRY, ids=str)
def test_every_part_is_its_formula(tiny_config: ModelConfig, change: dict[str, Any]) -> None:
    model = started(replace(tiny_config, **change))
    ids = some_ids(2, 21)
    documents = torch.tensor([0] * 9 + [1] * 12).repeat(2, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), plain_transformer(model, ids), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(
            model(ids, documents=documents), plain_transformer(model, ids, documents), atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize("change", EVERY_ENTRY, ids=str)
def test_cache_gives_the_logits_of_the_whole_sequence(tiny_config: ModelConfig, change: dict[str, Any]) -> None:
    model = started(replace(tiny_config, **change))
    ids = some_ids(3, 24)
    with torch.no_grad():
        cache = Cache(model.config, 3, 24, torch.empty(0))
        pieces = [model(part, cache) for part in ids.split([9, 1, 1, 13], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("position", sorted(POSITIONS))
def test_generation_is_the_same_as_without_a_cache(tiny_config: ModelConfig, position: Any, compute: Compute) -> None:
    model = started(replace(tiny_config, position=position))
    prompts = [some_ids(1, n)[0].tolist() for n in (3, 11, 7)]  # of unequal lengths in one batch
    written = generate(model, prompts, 12, Sampling(temperature=0), seed=1, stop=-1, compute=compute)
    for prompt, continuation in zip(prompts, written, strict=True):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert continuation == ids[len(prompt) :]


@pytest.mark.parametrize("change", EVERY_ENTRY, ids=str)
def test_training_starts_near_ln_of_the_vocabulary(tiny_config: ModelConfig, change: dict[str, Any]) -> None:
    model = Transformer(replace(tiny_config, n_layer=6, **change), 2000)
    model.initialise(1)
    ids = torch.randint(0, 2000, (4, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(2000), abs=0.3)


@pytest.mark.parametrize("change", EVERY_ENTRY, ids=str)
def test_every_part_trains_in_bf16(tiny_config: ModelConfig, change: dict[str, Any]) -> None:
    model = started(replace(tiny_config, **change))
    ids = some_ids(2, 20)
    with torch.no_grad():
        exact = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ids)
    rounded.float().sum().backward()
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_packed_documents_are_as_if_alone(tiny_config: ModelConfig) -> None:
    """With RoPE only distances count, so a masked document has the logits that it has by itself."""
    model = started(tiny_config)
    ids = some_ids(1, 24)
    documents = torch.tensor([[0] * 7 + [1] + [2] * 11 + [3] * 5])
    with torch.no_grad():
        packed = model(ids, documents=documents)
        alone = torch.cat([model(part) for part in ids.split([7, 1, 11, 5], dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-5)


def test_dropout_is_a_function_of_the_seed_and_only_of_training(tiny_config: ModelConfig) -> None:
    model, plain = started(replace(tiny_config, dropout=0.25)), started(tiny_config)
    ids = some_ids(4, 32)

    def after(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.hidden(ids)

    assert torch.equal(after(1), plain.hidden(ids))
    model.train()
    assert torch.equal(after(1), after(1))
    assert not torch.equal(after(1), after(2))
    dropped: list[Tensor] = []
    model.blocks[0].attention_norm.register_forward_pre_hook(lambda module, inputs: dropped.append(inputs[0]))
    after(3)
    assert (dropped[0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    kept = dropped[0] != 0
    torch.testing.assert_close(dropped[0][kept], (model.embedding(ids) / 0.75)[kept])


def test_swiglu_keeps_gate_and_up_in_one_product(tiny_config: ModelConfig) -> None:
    feed_forward = FEED_FORWARDS["swiglu"](tiny_config)
    assert isinstance(feed_forward, SwiGLU)
    assert feed_forward.gate_up.weight.shape == (2 * tiny_config.d_ff, tiny_config.d_model)
