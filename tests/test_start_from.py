"""Models of others at work here: evaluated as they are, tuned, trained further; refused where they do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llm.corpus.stories.source import tell
from llm.errors import WordmillError
from llm.model import folder
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import CL100K
from llm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from pipeline import presets
from stages.params import load
from stages.pretrain import Params, beginning

REPO = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    "corpus.source": "files",
    "corpus.paths": ["text.jsonl"],
    "tokenizer.kind": "file",
    "tokenizer.path": "given/tokenizer.json",
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.n_kv_head": 2,
    "model.d_model": 32,
    "model.d_ff": 48,
    "model.block_size": 64,
    "model.rope_theta": 10000.0,
    "model.tie_head": False,
    "pretrain.start_from": "given",
    "pretrain.steps": 0,
    "pretrain.eval_documents": 2,
    "preferences.source": "corpus",
    "preferences.pairs": 24,
    "dpo.batch_size": 8,
    "evaluate.documents": 2,
    "samples.count": 2,
    "samples.max_new_tokens": 8,
    "compute.device": "cpu",
    "compute.precision": "fp32",
    "compute.threads": 1,
}
GPT2: dict[str, Any] = SMALL | {
    "model.position": "learned",
    "model.norm": "layernorm",
    "model.feed_forward": "gelu",
    "model.bias": True,
    "model.n_kv_head": 4,
    "model.d_ff": 128,
    "model.tie_head": True,
}


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_stages: Callable[..., None]) -> Path:
    """A text, and a tokenizer of it in given/, as it comes with somebody's model."""
    monkeypatch.chdir(tmp_path)
    Path("presets").symlink_to(REPO / "presets")
    texts = [tell(1, n).text for n in range(200)]
    Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    describe({"tokenizer.kind": "bpe", "tokenizer.vocab_size": 400})
    run_stages("download", "tokenizer")
    Path("given").mkdir()
    (Path("given") / "tokenizer.json").write_bytes(Path("data/tokenizer/tokenizer.json").read_bytes())
    return tmp_path


def describe(changes: dict[str, Any], base: dict[str, Any] = SMALL) -> None:
    Path("params.yaml").write_text(presets.from_preset("default", base | changes))


def llama(vocab_size: int = 400) -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(config)


def gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(1)
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize(("make", "settings"), [(llama, SMALL), (gpt2, GPT2)])
def test_a_given_model_goes_through_all_stages(
    make: Callable[[], transformers.PreTrainedModel],
    settings: dict[str, Any],
    repo: Path,
    run_stages: Callable[..., None],
) -> None:
    theirs = make().eval()
    theirs.save_pretrained("given")
    describe({}, settings)
    run_stages()

    base = folder.load(Path("models/base"))
    ids = torch.tensor([Tokenizer.load(Path("models/base")).encode(tell(1, 900).text)[:60]])
    with torch.no_grad():
        assert (base(ids) - theirs(ids).logits).abs().max() < 1e-4
    pretrained = json.loads(Path("reports/pretrain.json").read_text())
    assert (pretrained["step"], pretrained["tokens"]) == (0, 0)
    assert "given, not trained here" in Path("reports/report.html").read_text()
    tuned = folder.load(Path("models/dpo"))
    assert folder.fingerprint(tuned) != folder.fingerprint(base)


def test_a_given_model_is_trained_further(repo: Path, run_stages: Callable[..., None]) -> None:
    llama().save_pretrained("given")
    describe(
        {"pretrain.steps": 20, "pretrain.warmup_steps": 2, "pretrain.batch_size": 4, "pretrain.micro_batch_size": 4}
    )
    run_stages("shards", "pretrain")
    further = json.loads(Path("reports/pretrain.json").read_text())["val_loss"]
    describe({})
    run_stages("pretrain")
    assert further < json.loads(Path("reports/pretrain.json").read_text())["val_loss"] - 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.n_layer": 3, "model.d_ff": 64}, "set model.n_layer=2 model.d_ff=48"),
        ({"pretrain.start_from": "nowhere"}, "nowhere: no model there"),
    ],
)
def test_what_does_not_fit_is_told(changes: dict[str, Any], message: str, repo: Path) -> None:
    llama().save_pretrained("given")
    describe(changes)
    with pytest.raises(WordmillError, match=message):
        beginning(load(Params), Tokenizer.load(Path("data/tokenizer")))


def test_another_vocabulary_is_told(repo: Path) -> None:
    """A padded one is that of the same tokenizer, which lies in the model's folder."""
    tokenizer = Tokenizer.load(Path("data/tokenizer"))
    theirs = llama(vocab_size=500)
    theirs.save_pretrained("given")
    tokenizer.save(Path("given"))
    describe({})
    ours = beginning(load(Params), tokenizer).eval()
    assert ours.vocab_size == 400
    ids = torch.arange(40)[None] * 10
    with torch.no_grad():
        assert (theirs.eval()(ids).logits[..., :400] - ours(ids)).abs().max() < 1e-4
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("given", name).unlink()
    with pytest.raises(WordmillError, match=r"has 500 tokens, the tokenizer 400; put its tokenizer\.json into given"):
        beginning(load(Params), tokenizer)
    ByteBPE.from_merges([], CL100K, [END_OF_TEXT]).save(Path("given"))
    with pytest.raises(WordmillError, match="has 500 tokens, the tokenizer 400; take the model's own"):
        beginning(load(Params), tokenizer)
    llama(vocab_size=300).save_pretrained("given")
    with pytest.raises(WordmillError, match="has 300 tokens, the tokenizer 400"):
        beginning(load(Params), tokenizer)
