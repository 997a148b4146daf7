"""Going on from another run's checkpoint: what it may be used for, and what it means nothing for."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from llm.checkpoint import STATE, SUMS, TENSORS
from llm.compute import Compute
from llm.errors import WordmillError
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.pretrain import PretrainConfig, last_before_decay, pretrain
from llm.training_state import Record
from tests.llm.test_training import PRETRAIN, Ramps

pytestmark = pytest.mark.usefixtures("no_peak")

ORIGIN = {"tokenizer": "1f" * 32, "shards": "2e" * 8}
FREE = {"attention", "dropout"}  # how it is computed, and a setting of the training
OTHER: dict[str, Any] = {
    "n_layer": 1,
    "n_head": 8,
    "n_kv_head": 4,
    "d_model": 64,
    "d_ff": 64,
    "block_size": 64,
    "attention": "reference",
    "position": "none",
    "rope_theta": 77.0,
    "norm": "layernorm",
    "norm_eps": 1e-6,
    "qk_norm": True,
    "feed_forward": "gelu",
    "bias": True,
    "dropout": 0.5,
    "tie_head": False,
    "head_dim": 16,
}


def start(
    model: ModelConfig,
    compute: Compute,
    at: Path,
    settings: PretrainConfig = PRETRAIN,
    origin: dict[str, str] = ORIGIN,
    vocab_size: int = 64,
) -> tuple[Transformer, Iterator[Record]]:
    trained = Transformer(model, vocab_size)
    trained.initialise(settings.seed)
    figures = lambda m: {"loss": 1.0}  # noqa: E731
    return trained, pretrain(
        trained, Ramps(), settings, compute, figures, lambda m: "text", at, lambda: False, origin=origin
    )


@pytest.fixture
def first(tiny_config: ModelConfig, compute: Compute, tmp_path: Path) -> Path:
    """The checkpoints of a run of 6 steps."""
    list(start(tiny_config, compute, tmp_path / "first", replace(PRETRAIN, steps=6))[1])
    return tmp_path / "first"


@pytest.mark.parametrize("name", [field.name for field in fields(ModelConfig)])
def test_every_setting_of_the_model_is_compared(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, first: Path, name: str
) -> None:
    changed = replace(tiny_config, **{name: OTHER[name]})
    assert changed != tiny_config
    records = start(changed, compute, tmp_path / "second", replace(PRETRAIN, continue_from=str(first)))[1]
    if name in FREE:
        assert next(records).resumed
        return
    here, there = asdict(changed)[name], asdict(tiny_config)[name]
    with pytest.raises(
        WordmillError, match=rf"^pretrain\.continue_from: {first} .* model\.{name} is {there}, here {here}"
    ):
        next(records)


def test_a_checkpoint_from_before_heads_had_a_width_goes_on(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, first: Path
) -> None:
    """It says nothing of head_dim, which was d_model / n_head in all of them."""
    newest = max(first.glob("step-*"))
    state = json.loads((newest / STATE).read_text())
    del state["state"]["origin"]["model.head_dim"]
    (newest / STATE).write_text(json.dumps(state))
    digests = {name: hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in (STATE, TENSORS)}
    (newest / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    settings = replace(PRETRAIN, continue_from=str(first))
    assert next(start(tiny_config, compute, tmp_path / "second", settings)[1]).resumed
    with pytest.raises(WordmillError, match=r"model\.head_dim is 0, here 16"):
        next(start(replace(tiny_config, head_dim=16), compute, tmp_path / "third", settings)[1])


@pytest.mark.parametrize("name", ORIGIN)
def test_another_tokenizer_and_other_shards_are_refused(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, first: Path, name: str
) -> None:
    settings = replace(PRETRAIN, continue_from=str(first))
    records = start(tiny_config, compute, tmp_path / "second", settings, ORIGIN | {name: "other"})[1]
    with pytest.raises(WordmillError, match=rf"{name} is {ORIGIN[name]}, here other; set these back") as caught:
        next(records)
    assert "\n" not in str(caught.value)


def test_another_size_of_vocabulary_is_refused(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, first: Path
) -> None:
    settings = replace(PRETRAIN, continue_from=str(first))
    with pytest.raises(WordmillError, match=r"model\.vocab_size is 64, here 65"):
        next(start(tiny_config, compute, tmp_path / "second", settings, vocab_size=65)[1])


def test_a_checkpoint_of_an_older_version_is_taken_and_said(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in first.glob("step-*"):
        content = json.loads((path / "state.json").read_text())
        del content["state"]["origin"]
        (path / "state.json").write_text(json.dumps(content))
        names = ("tensors.safetensors", "state.json")
        sums = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
        (path / "SHA256SUMS").write_text("".join(sums))
    settings = replace(PRETRAIN, continue_from=str(first))
    assert next(start(tiny_config, compute, tmp_path / "second", settings, {"shards": "other"})[1]).resumed
    assert f"{first}: an older version wrote it" in capsys.readouterr().out


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_a_finished_run_is_given_more_steps(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, schedule: str
) -> None:
    """It ends as if it had had them from the beginning: with wsd, from the checkpoint before its decay."""
    settings = replace(
        PRETRAIN, schedule=schedule, checkpoints_kept=1, checkpoint_every=99, eval_every=99, log_every=99
    )
    whole, records = start(tiny_config, compute, tmp_path / "whole", replace(settings, steps=20))
    list(records)
    list(start(tiny_config, compute, tmp_path / "short", replace(settings, steps=12))[1])
    beginning = tmp_path / "short"
    if schedule == "wsd":
        assert last_before_decay(settings) == 9
        beginning /= "step-00000009"
        assert beginning.is_dir()
    longer = replace(settings, steps=20, continue_from=str(beginning))
    model, records = start(tiny_config, compute, tmp_path / "longer", longer)
    list(records)
    assert folder.fingerprint(model) == folder.fingerprint(whole)


def test_keys_without_effect_may_change_while_it_is_stopped(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path
) -> None:
    """The weights and the curve are those of a run that had the new ones from the beginning."""
    new = replace(PRETRAIN, sample_every=5, checkpoint_every=2, checkpoints_kept=1)
    assert {name for name in vars(new) if vars(new)[name] != vars(PRETRAIN)[name]} == set(new.WITHOUT_EFFECT)
    whole, records = start(tiny_config, compute, tmp_path / "whole", new)
    expected = [(record.step, record.values) for record in records if record.values]
    _, stopped = start(tiny_config, compute, tmp_path / "stopped")
    while next(stopped).step < 8:
        pass
    stopped.close()
    model, records = start(tiny_config, compute, tmp_path / "stopped", new)
    again = list(records)
    assert again[0].resumed
    assert [(record.step, record.values) for record in again if record.values] == expected
    assert folder.fingerprint(model) == folder.fingerprint(whole)


def test_foreign_files_beside_checkpoints_hurt_nobody(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path
) -> None:
    list(start(tiny_config, compute, tmp_path, replace(PRETRAIN, steps=6))[1])
    for name in (".DS_Store", "step-x", "step-00000099.bak", "step-99999999"):
        (tmp_path / name).touch()
    (tmp_path / "step-00000001 (copy)").mkdir()
    (tmp_path / "step-12345678").symlink_to("nowhere")
    again = list(start(tiny_config, compute, tmp_path, replace(PRETRAIN, steps=8))[1])
    assert again[0].resumed
    assert (tmp_path / "step-00000008").is_dir()
