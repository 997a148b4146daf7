"""A made-up entry in every table of parts: whoever computes a part a second time falls back to it, or refuses.

No consumer may compute it by the formula of another part. What is expected comes from the model's own forward pass,
over each text alone.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llm import dpo_losses, nonfinite
from llm.compiled_decoder import CompiledDecoder, fastest
from llm.compute import Compute
from llm.decoder import TorchDecoder
from llm.errors import ConfigError, WordmillError
from llm.export import gguf
from llm.export.formats import FORMS, Source
from llm.generate import generate
from llm.model import folder
from llm.model.attention import ATTENTIONS, reference
from llm.model.config import ModelConfig
from llm.model.counts import flops_per_token, parameters
from llm.model.exact import unknown_part
from llm.model.feed_forward import FEED_FORWARDS, GELU, Plain, SwiGLU
from llm.model.norms import NORMS
from llm.model.positions import POSITIONS, Learned
from llm.model.transformer import Transformer
from llm.optim import schedules
from llm.optim.muon import Muon
from llm.optim.optimizers import OPTIMIZERS
from llm.pretrain import PretrainConfig, learning_rate, pretrain
from llm.sampling import Sampling
from llm.scoring import Segment, pair_logprobs, score
from tests.conftest import TINY
from tests.llm import test_training as training
from tests.llm.test_devices import PRETRAIN, segments
from tests.llm.test_devices import Source as Text

V = 64
KEYS = ("norm", "position", "feed_forward")
NAMES = {key: get_args(kind) for key, kind in get_type_hints(ModelConfig).items() if key in KEYS}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]


def near(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    """Attention to the last four positions alone."""
    places = torch.arange(q.shape[2], device=q.device)
    far = (places[:, None] - places >= 4) | (places[:, None] < places)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).masked_fill(far, float("-inf"))
    return scores.softmax(-1) @ v


class SiLU(Plain):
    activation = staticmethod(nn.functional.silu)


class Shift(Plain):
    """A feed-forward that sees the token before, too."""

    activation = staticmethod(nn.functional.relu)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])


class GatedGELU(SwiGLU):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(nn.functional.gelu(gate) * up)


class Scale(nn.Module):
    """A norm that is neither RMSNorm nor LayerNorm, with a parameter that is no vector."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.strength = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.strength * x / (x.abs().amax(dim=-1, keepdim=True) + 1e-3) * self.weight


class Parity(nn.Module):
    """Positions by their parity."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, config.d_model))

    def forward(self, x: Tensor, places: Tensor | None) -> tuple[Tensor, None]:
        places = torch.arange(x.shape[1], device=x.device) if places is None else places
        return x + self.weight[places % 2], None


class Far(Learned):
    """Learned positions, the other way round."""

    def forward(self, x: Tensor, places: Tensor | None) -> tuple[Tensor, None]:
        return super().forward(x, None if places is None else places)[0].flip(-1), None


# Table, key in the configuration, name, entry. Some stand under an old name.
PARTS: list[tuple[dict[str, Any], str, str, Any]] = [
    (ATTENTIONS, "attention", "near", near),
    (ATTENTIONS, "attention", "fused", near),
    (FEED_FORWARDS, "feed_forward", "silu", SiLU),
    (FEED_FORWARDS, "feed_forward", "shift", Shift),
    (FEED_FORWARDS, "feed_forward", "geglu", GatedGELU),
    (FEED_FORWARDS, "feed_forward", "swiglu", GatedGELU),
    (FEED_FORWARDS, "feed_forward", "relu", GELU),
    (NORMS, "norm", "scale", Scale),
    (NORMS, "norm", "rmsnorm", Scale),
    (NORMS, "norm", "rmsnorm", lambda config, width: nn.RMSNorm(width, 0.5)),
    (POSITIONS, "position", "parity", Parity),
    (POSITIONS, "position", "learned", Far),
]


@pytest.fixture(params=PARTS, ids=lambda part: f"{part[1]}={part[2]}:{getattr(part[3], '__name__', '')}")
def made_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Transformer:
    """A model with one made-up part."""
    table, key, name, entry = request.param
    monkeypatch.setitem(table, name, entry)
    parameters.__globals__["_counted"].cache_clear()
    model = Transformer(replace(TINY, **{key: name}), V)
    model.initialise(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return model.eval()


@torch.no_grad()
def alone(model: Transformer, tokens: list[int]) -> Tensor:
    """Log-probabilities (T, V) by the model's own forward pass."""
    return model(torch.tensor([tokens]))[0].log_softmax(-1)


def greedy(model: Transformer, prompt: list[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(alone(model, text)[-1].argmax()))
    return text[len(prompt) :]


def test_it_is_noticed(made_up: Transformer) -> None:
    assert unknown_part(made_up) is not None


def test_samples_are_of_the_model_that_was_trained(made_up: Transformer, compute: Compute) -> None:
    expected = [greedy(made_up, prompt, 9) for prompt in PROMPTS]
    assert generate(made_up, PROMPTS, 9, Sampling(0.0), 1, -1, compute) == expected
    decoder = fastest(made_up, compute)
    assert not isinstance(decoder, CompiledDecoder)
    with pytest.raises(WordmillError, match="does not know"):
        CompiledDecoder(made_up, compute)
    reading = decoder.read(PROMPTS, 32)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(reading.logits[row].log_softmax(-1), alone(made_up, prompt)[-1], atol=1e-4, rtol=0)
    if type(made_up.blocks[0].feed_forward).forward is not Plain.forward:  # token by token, whatever its activation
        with pytest.raises(WordmillError, match="does not know"):
            TorchDecoder(made_up, compute)


def test_scores_are_the_models(made_up: Transformer, compute: Compute) -> None:
    given = segments(8)
    expected = [
        sum(float(alone(made_up, s.tokens.tolist())[at - 1, s.tokens[at]]) for at in range(s.first, len(s.tokens)))
        for s in given
    ]
    np.testing.assert_allclose(score(made_up, given, compute), expected, rtol=1e-4)
    shared = [Segment(np.concatenate([s.tokens[:3], s.tokens[3:][::-1]]), s.first) for s in given]
    other = score(made_up, shared, compute)
    with torch.no_grad():
        pairs = pair_logprobs(made_up, given, shared, compute)
    np.testing.assert_allclose(pairs.numpy(), np.stack([expected, other]), rtol=1e-4)


def test_folders_and_other_forms_hold_it_or_refuse(made_up: Transformer, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    folder.save(made_up, tmp_path / "model", tmp_path, 0)
    known = all(getattr(made_up.config, key) in names for key, names in NAMES.items())
    if known:  # the name is one of the configuration's
        ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
        torch.testing.assert_close(folder.load(tmp_path / "model")(ids), made_up(ids))
    else:
        with pytest.raises(WordmillError, match="is not supported"):
            folder.load(tmp_path / "model")
    source = Source(tmp_path / "model", made_up, None, "x")  # type: ignore[arg-type]
    for name in ("huggingface", "gguf-f32"):
        with pytest.raises(WordmillError, match="leave"):
            FORMS[name].write(source, tmp_path / name)  # type: ignore[index]


def test_counts_are_the_models(made_up: Transformer) -> None:
    rows = parameters(made_up.config, V)
    assert sum(rows.values()) == sum(weight.numel() for weight in made_up.parameters())
    assert flops_per_token(made_up.config, V) > 0


def test_muon_takes_no_matrix_of_an_unknown_part_apart(made_up: Transformer) -> None:
    optimizer = Muon(made_up, 1e-3, 0.02, (0.9, 0.99), 0.1)
    named = [name for name, w in made_up.named_parameters() if name.startswith("blocks.") and w.ndim == 2]
    for name, sizes in zip(named, optimizer.sizes, strict=True):
        if name.endswith("gate_up.weight"):
            owner = made_up.get_submodule(name.removesuffix(".gate_up.weight"))
            assert len(sizes) == (2 if type(owner) is SwiGLU else 1)


def test_it_trains_and_the_detective_works(
    made_up: Transformer, compute: Compute, tmp_path: Path, no_peak: None
) -> None:
    def stop(model: Transformer) -> dict[str, float]:
        with torch.no_grad():
            model.blocks[1].attention.out.weight[0, 0] = float("inf")
        return {"loss": 0.0}

    made_up.train()
    how = replace(PRETRAIN, eval_every=1, checkpoint_every=9)
    with pytest.raises(WordmillError, match=r"step 1.*blocks\.1\.attention\.out, weight"):
        list(pretrain(made_up, Text(), how, compute, stop, lambda model: "", tmp_path))
    bundle = next(tmp_path.glob("nonfinite-*"))
    found = nonfinite.replay(bundle)
    assert found is not None
    assert found.module == "blocks.1.attention.out"


OTHERS: list[Callable[..., torch.optim.Optimizer]] = [partial(torch.optim.SGD, momentum=0.9), torch.optim.RMSprop]


@pytest.mark.parametrize("make", OTHERS)
def test_an_optimizer_that_knows_nothing_of_skipped_steps_skips_them(
    make: Callable[..., torch.optim.Optimizer],
    monkeypatch: pytest.MonkeyPatch,
    compute: Compute,
    tmp_path: Path,
    no_peak: None,
) -> None:
    def made(model: Transformer, settings: Any) -> torch.optim.Optimizer:
        optimizer = make(list(model.parameters()), lr=0.1)
        for group in optimizer.param_groups:
            group["peak"] = settings.lr
        return optimizer

    monkeypatch.setitem(OPTIMIZERS, "made_up", made)
    model = Transformer(TINY, V)
    model.initialise(1)
    before = [weight.clone() for weight in model.parameters()]
    monkeypatch.setattr(Transformer, "hidden", spoiled(Transformer.hidden))
    how = replace(
        PRETRAIN, optimizer="made_up", steps=1, warmup_steps=0, on_nonfinite="skip", max_skips=3, checkpoint_every=9
    )  # type: ignore[arg-type]
    list(pretrain(model, Text(), how, compute, lambda m: {"loss": 0.0}, lambda m: "", tmp_path))
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    with pytest.raises(ConfigError, match="needs whole"):
        replace(how, parallel="fsdp2")


def spoiled(hidden: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: hidden(*args, **kwargs) * float("nan")


def test_a_schedule_and_a_loss_are_taken_from_their_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(schedules.SCHEDULES, "half", lambda step, steps, warmup, lr, share, decay: lr / 2)
    how: PretrainConfig = replace(training.PRETRAIN, schedule="half")  # type: ignore[arg-type]
    assert learning_rate(how, 3, 1.0) == 0.5
    monkeypatch.setitem(dpo_losses.LOSSES, "zero", lambda ratios, *_: ratios[0] * 0)
    ratios, lengths = torch.ones(2, 3), torch.ones(2, 3)
    assert float(dpo_losses.preference_loss("zero", ratios, lengths, 0.1, 0.0)) == 0  # type: ignore[arg-type]


def test_the_cache_itself_refuses_another_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTENTIONS, "near", near)
    model = Transformer(replace(TINY, attention="near"), V)  # type: ignore[arg-type]
    from llm.model.transformer import Cache

    with pytest.raises(WordmillError, match="cache of generation does not know near"):
        model.hidden(torch.tensor([[1, 2]]), Cache(model.config, 1, 8, torch.empty(0)))


def test_gguf_refuses_a_pattern_that_llama_cpp_does_not_have(tiny_model: Transformer, tmp_path: Path) -> None:
    from llm.tokenizer.byte_bpe import ByteBPE

    tokenizer = ByteBPE.__new__(ByteBPE)
    tokenizer.definition = type("Definition", (), {"merges": [(1, 2)], "pattern": r"\S+|\s+"})()
    with pytest.raises(WordmillError, match="does not have this tokenizer's pattern"):
        gguf.write(tiny_model, tokenizer, tmp_path / "x.gguf", "f32", "x")


def test_our_own_parts_are_known() -> None:
    for key, table in (
        ("feed_forward", FEED_FORWARDS),
        ("position", POSITIONS),
        ("norm", NORMS),
        ("attention", ATTENTIONS),
    ):
        for name in table:
            assert unknown_part(Transformer(replace(TINY, **{key: name, "qk_norm": True}), V)) is None
    assert reference in ATTENTIONS.values()
