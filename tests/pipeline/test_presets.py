"""Presets, changes and the commands around params.yaml."""

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from llm.errors import WordmillError
from pipeline import overrides, plan, presets
from stages import params, schema

REPO = Path(__file__).parents[2]
ALL = sorted(path.stem for path in (REPO / "presets").glob("*.yaml"))


def read(text: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = YAML(typ="safe", pure=True).load(text)
    return found


@pytest.fixture
def repo(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(REPO)
    return REPO


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the default params and a link to the presets."""
    monkeypatch.chdir(tmp_path)
    Path("presets").symlink_to(REPO / "presets")
    Path("params.yaml").write_bytes((REPO / "presets/default.yaml").read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ALL)
def test_every_preset_is_valid_and_is_the_default_but_for_what_it_names(repo: Path, name: str) -> None:
    text = presets.from_preset(name, {})
    schema.check(read(text))
    default, own = read((repo / "presets/default.yaml").read_text()), read((repo / f"presets/{name}.yaml").read_text())
    expected = {section: {**content, **own.get(section, {})} for section, content in default.items()}
    assert read(text) == expected
    # Every comment behind a key is still behind it.
    for line in (repo / "presets/default.yaml").read_text().splitlines():
        if ": " in line and " # " in line and not line.startswith("#"):
            assert line.rpartition(" # ")[2] in text


def test_default_is_the_very_file(repo: Path) -> None:
    assert presets.from_preset("default", {}) == (repo / "presets/default.yaml").read_text()


def test_changes_are_typed_as_yaml_and_only_they_change(repo: Path) -> None:
    changes = presets.parsed(["pretrain.lr=1e-3", "samples.prompts=[One, 'Two: x']", "model.tie_head=false"])
    assert changes == {"pretrain.lr": 0.001, "samples.prompts": ["One", "Two: x"], "model.tie_head": False}
    before = (repo / "presets/default.yaml").read_text()
    after = presets.from_preset("default", changes)
    content = read(before)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        content[section][key] = value
    assert read(after) == content
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert len(changed) <= 5  # three values; a list may take a line an entry


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pretrain.stps=3"], "--set: pretrain.stps: unknown key; did you mean 'steps'?"),
        (["pretain.steps=3"], "--set: pretain: unknown section; did you mean 'pretrain'?"),
        (["pretrain.steps=many"], "--set: pretrain.steps: input should be a valid integer, found 'many'"),
        (["pretrain.lr=-1"], "--set: pretrain.lr: "),
        (["steps=3"], "--set steps=3: give a name and a value"),
        (["pretrain.steps"], "--set pretrain.steps: give a name and a value"),
        (["pretrain.steps=[1"], "--set pretrain.steps=[1: not a YAML value"),
        (["model.n_head=5"], "--set: model.n_head: "),
        (["evaluate.stride=257"], "--set: evaluate.stride: 257 is longer than model.block_size, 256; lower it"),
    ],
)
def test_a_wrong_change_is_one_line_and_changes_nothing(folder: Path, settings: list[str], message: str) -> None:
    before = Path("params.yaml").read_bytes()
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    with pytest.raises(WordmillError) as caught:
        presets.from_preset("default", presets.parsed(settings))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    if settings == ["pretrain.stps=3"]:  # once through the program: a process takes its time
        command = [sys.executable, "-m", "pipeline.cli", "use", "default", *arguments]
        done = subprocess.run(command, env={"PYTHONPATH": str(REPO)}, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, f"wordmill: {caught.value}\n")
    assert Path("params.yaml").read_bytes() == before


def test_unknown_preset_names_the_known(repo: Path) -> None:
    with pytest.raises(WordmillError, match=r"shakespear: no such preset; there are default, .*shakespeare"):
        presets.from_preset("shakespear", {})


def test_overrides_are_over_params_and_not_over_the_default(folder: Path) -> None:
    assert plan.text(None, {}) is None
    path = Path("params.yaml")
    path.write_text(presets.changed(path.read_text(), {"pretrain.steps": 77}, "x"))
    text = plan.text(None, {"dpo.beta": 0.5})
    assert text
    assert (read(text)["pretrain"]["steps"], read(text)["dpo"]["beta"]) == (77, 0.5)


def test_params_come_back_and_are_the_overridden_ones_meanwhile(folder: Path) -> None:
    before = Path("params.yaml").read_bytes()
    with plan.prepared(None, {"pretrain.steps": 99}):
        assert params.document()["pretrain"]["steps"] == 99
        with pytest.raises(WordmillError, match="another rebuild runs"), plan.prepared(None, {}):
            pass
        overrides.recover_if_idle()  # another command, while this rebuild runs
        assert params.document()["pretrain"]["steps"] == 99
    assert Path("params.yaml").read_bytes() == before
    assert not list(Path("runs/overridden").iterdir())


KILLED = """
import os, signal
from pipeline import plan
with plan.prepared(None, {"pretrain.steps": 99}):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_params_come_back_after_a_kill_unless_edited_since(folder: Path) -> None:
    before = Path("params.yaml").read_bytes()

    def kill() -> None:
        subprocess.run([sys.executable, "-c", KILLED], env={"PYTHONPATH": str(REPO)}, check=False)
        assert params.document()["pretrain"]["steps"] == 99

    kill()
    overrides.recover_if_idle()
    assert Path("params.yaml").read_bytes() == before
    kill()
    edited = Path("params.yaml").read_text() + "# mine\n"
    Path("params.yaml").write_text(edited)
    overrides.recover_if_idle()
    assert Path("params.yaml").read_text() == edited
    assert Path("runs/overridden/original.yaml.kept").read_bytes() == before


def test_usage_errors_and_listing(repo: Path) -> None:
    def wordmill(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], capture_output=True, text=True)

    assert wordmill("use").returncode == 2
    listed = wordmill("presets")
    assert listed.returncode == 0
    assert listed.stdout.split()[0] == "default"
    assert [line.split()[0] for line in listed.stdout.splitlines()][1:] == [name for name in ALL if name != "default"]
