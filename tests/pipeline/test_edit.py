"""params.yaml is changed in place: whatever a person wrote beside the value stays, byte for byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.errors import WordmillError
from pipeline import cli, plan
from pipeline.edit import edited
from stages import params

REPO = Path(__file__).parents[2]
TEXT = (REPO / "presets/default.yaml").read_text()
KEYS = [f"{section}.{key}" for section, keys in params.parse(TEXT, "default").items() for key in keys]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("presets").symlink_to(REPO / "presets")
    Path("params.yaml").write_text(TEXT)
    return tmp_path


@pytest.mark.parametrize(
    "value", [7, 0.5, True, "", "a: b # c", 'it\'s "x"', "é\n", ["a:b", "c, d"], [], [1, 2], "1e-3"]
)
@pytest.mark.parametrize("style", ["plain", "windows"])
def test_every_key_takes_every_value_and_nothing_else_changes(value: Any, style: str) -> None:
    text = TEXT.replace("\n", "\r\n") if style == "windows" else TEXT
    new = edited(text, dict.fromkeys(KEYS, value), "test")
    found = params.parse(new, "test")
    assert all(found[section][key] == value for section, _, key in (name.partition(".") for name in KEYS))
    assert new.count("\r\n") == text.count("\r\n")
    comments = [line.partition(" # ")[2] for line in text.splitlines() if " # " in line]
    assert len(comments) > 100
    assert all(comment in new for comment in comments)


STYLES: dict[str, Callable[[str], str]] = {
    "line ends": lambda text: text.replace("\n", "\r\n"),
    "byte order mark": lambda text: "\ufeff" + text,
    "tabs": lambda text: text.replace("  steps: 1250 #", "  steps:\t1250\t#"),
    "quotes": lambda text: text.replace("kind: bpe ", "kind: 'bpe' "),
    "no last line end": lambda text: text.rstrip("\n"),
}


@pytest.mark.parametrize("name", STYLES)
def test_only_the_value_changes(name: str) -> None:
    text = STYLES[name](TEXT)
    new = edited(text, {"pretrain.steps": 77}, "test")
    assert new == text.replace("1250", "77", 1)


def test_lists_over_several_lines_and_sections_on_one() -> None:
    text = "export:\n  formats:\n    - huggingface # a\n    - int8\n  model: dpo # b\nshards: {encoder: auto} # c\n"
    new = edited(text, {"export.formats": ["int8"], "shards.tokens_per_shard": 9}, "test")
    assert params.parse(new, "test") == {
        "export": {"formats": ["int8"], "model": "dpo"},
        "shards": {"encoder": "auto", "tokens_per_shard": 9},
    }
    assert "# b" in new
    assert "# c" in new


def test_an_absent_key_and_section_are_added() -> None:
    text = "dpo:\n  beta: 0.1 # why\n\nsamples:\n  count: 6\n"
    new = edited(text, {"dpo.lr": 0.5, "export.model": "base"}, "test")
    assert new == "dpo:\n  beta: 0.1 # why\n  lr: 0.5\n\nsamples:\n  count: 6\nexport:\n  model: base\n"


def test_an_alias_is_not_changed_behind_its_owner() -> None:
    with pytest.raises(WordmillError, match="edit it by hand"):
        edited("dpo:\n  seed: &seed 1\nsamples:\n  seed: *seed\n", {"samples.seed": 2}, "test")


def test_set_keeps_link_mode_and_line_ends(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = folder / "own.yaml"
    own.write_bytes(TEXT.replace("\n", "\r\n").encode())
    own.chmod(0o640)
    Path("params.yaml").unlink()
    Path("params.yaml").symlink_to("own.yaml")
    cli.set_values(["pretrain.steps=77", "dpo.beta=0.2"])
    assert capsys.readouterr().out == "pretrain.steps: 1250 → 77\ndpo.beta: 0.1 → 0.2\n"
    assert Path("params.yaml").is_symlink()
    assert own.stat().st_mode & 0o777 == 0o640
    before = TEXT.replace("steps: 1250", "steps: 77", 1).replace("beta: 0.1 ", "beta: 0.2 ", 1)
    assert own.read_bytes() == before.replace("\n", "\r\n").encode()
    original = own.read_bytes()
    with plan.prepared(None, {"samples.count": 2}):  # as `wordmill run --set` does
        assert b"count: 2 " in own.read_bytes()
    assert own.read_bytes() == original
    assert Path("params.yaml").is_symlink()
    assert own.stat().st_mode & 0o777 == 0o640


def test_a_wrong_value_changes_nothing(folder: Path) -> None:
    for setting, line in (("pretrain.steps=-1", "is not positive"), ("pretrain.stps=3", "did you mean 'steps'")):
        with pytest.raises(WordmillError, match=line):
            cli.set_values([setting])
    assert Path("params.yaml").read_text() == TEXT


def test_use_says_what_it_drops_and_keeps_a_copy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.use("default")
    cli.use("nanolm")
    cli.use("default")
    assert not list(folder.glob("*.bak-*"))  # nothing of the user's own was there
    cli.set_values(["pretrain.steps=77"])
    mine = Path("params.yaml").read_bytes()
    capsys.readouterr()
    cli.use("nanolm")
    shown = capsys.readouterr().out
    [copy] = folder.glob("params.yaml.bak-*")
    assert copy.read_bytes() == mine
    assert f"had edits, which are kept in {copy.name}:\n  pretrain.steps: 1250 → 77\n" in shown
    Path("params.yaml").write_text("just words")
    cli.use("default")
    assert any(copy.read_text() == "just words" for copy in folder.glob("params.yaml.bak-*"))


def test_absent_keys_have_their_defaults_and_one_line_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in TEXT.splitlines(keepends=True) if "max_skips" not in line and "scope: " not in line]
    Path("params.yaml").write_text("".join(lines))
    cli.check()
    out, err = capsys.readouterr()
    assert out == "params.yaml is valid\n"
    assert err == 'params.yaml: absent keys have their defaults: pretrain.max_skips=10 dpo.scope="answers"\n'
