"""Whether what a stage began with is still the same: every stage, every kind of change, and how the end tells."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from llm.errors import TransientError, WordmillError
from stages import lineage
from stages.inputs import Inputs, fingerprint, meaning, read

REPO = Path(__file__).parents[2]
STAGES = {stage.name: stage for stage in lineage.declared(REPO / "dvc.yaml")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begun(stage: str) -> Inputs:
    """What a stage of this repository begins with where each of its dependencies is a small file or folder."""
    shutil.copy(REPO / "presets/default.yaml", "params.yaml")
    for name in STAGES[stage].deps:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text("value = 1\n")
        else:
            (path / "train").mkdir(parents=True)
            (path / "train/part").write_text("a part")
    return read(STAGES[stage], YAML(typ="safe", pure=True).load(Path("params.yaml")), time.time_ns())


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_sees_a_change_of_each_thing_that_dvc_records(folder: Path, stage: str) -> None:
    inputs = begun(stage)
    inputs.check_unchanged()
    declared = STAGES[stage]
    for name in declared.deps:
        path = Path(name) if Path(name).is_file() else Path(name, "train/part")
        before = path.read_text()
        path.write_text(before.swapcase())  # of the same length
        with pytest.raises(WordmillError, match=f"^changed while the stage ran: {name}; "):
            inputs.check_unchanged()
        path.write_text(before)
        inputs.check_unchanged()
    text = Path("params.yaml").read_text()
    for section in declared.sections:
        for key, value in inputs.sections[section].items():
            content = YAML().load(text)
            content[section][key] = "other" if value != "other" else "another"
            YAML().dump(content, Path("params.yaml"))
            with pytest.raises(WordmillError, match=rf"ran: {section}\.{key} \(.* -> .*\); DVC would"):
                inputs.check_unchanged()
            break
    Path("params.yaml").write_text("# a comment, and sections that others read\n" + text)
    inputs.check_unchanged()


CHANGES: dict[str, Callable[[Path], object]] = {
    "more": lambda folder: (folder / "b").write_text("x"),
    "less": lambda folder: (folder / "a").unlink(),
    "renamed": lambda folder: (folder / "a").rename(folder / "c"),
    "replaced by a folder": lambda folder: [shutil.move(folder, "old"), folder.mkdir(), (folder / "a").write_text("y")],
    "replaced by a link": lambda folder: [shutil.move(folder, "old"), folder.symlink_to("empty")],
    "gone": shutil.rmtree,
    "with its old times": lambda folder: [(folder / "a").write_text("2"), os.utime(folder / "a", (1, 1))],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("by", ["dependency", "param"])
def test_every_change_of_a_folder_is_seen(folder: Path, change: str, by: str) -> None:
    """Of one in dvc.yaml, and of the user's own."""
    Path("empty").mkdir()
    Path("in").mkdir()
    Path("in/a").write_text("1")
    os.utime("in/a", (1, 1))
    Path("params.yaml").write_text("pretrain: {start_from: in}\n")
    deps = ("in",) if by == "dependency" else ()
    stage = lineage.Declared("toy", deps, (), () if deps else ("pretrain",))
    inputs = read(stage, {"pretrain": {"start_from": "in"}})
    inputs.check_unchanged()
    CHANGES[change](Path("in"))
    with pytest.raises(WordmillError, match=r"^changed while the stage ran: in; "):
        inputs.check_unchanged()


def test_a_same_copy_in_the_place_of_a_folder_is_no_change(folder: Path) -> None:
    Path("in").mkdir()
    Path("in/a").write_text("1")
    Path("params.yaml").write_text("{}")
    inputs = read(lineage.Declared("toy", ("in",), (), ()), {})
    shutil.move("in", "old")
    shutil.copytree("old", "in")
    inputs.check_unchanged()


def test_a_new_file_that_a_glob_matches_is_a_change(folder: Path) -> None:
    Path("a.txt").write_text("1")
    Path("params.yaml").write_text("corpus: {paths: ['*.txt']}")
    inputs = read(lineage.Declared("toy", (), (), ("corpus",)), {"corpus": {"paths": ["*.txt"]}})
    inputs.check_unchanged()
    Path("b.txt").write_text("1")
    with pytest.raises(WordmillError, match=r"^changed while the stage ran: b\.txt; "):
        inputs.check_unchanged()


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("1", "1.0", True),
        ("1", "true", False),
        ("[1, 2]", "[1, 2.0]", True),
        ("[1, 2]", "[2, 1]", False),
        ("''", "null", False),
        ("1", "", False),
    ],
)
def test_params_are_compared_by_their_values(folder: Path, before: str, after: str, same: bool) -> None:
    Path("params.yaml").write_text(f"dpo: {{beta: {before}}}")
    inputs = read(lineage.Declared("toy", (), (), ("dpo",)), YAML(typ="safe", pure=True).load(Path("params.yaml")))
    Path("params.yaml").write_text(f"dpo: {{beta: {after}}}" if after else "dpo: {}")
    if same:
        inputs.check_unchanged()
    else:
        with pytest.raises(WordmillError, match=r"ran: dpo\.beta \("):
            inputs.check_unchanged()


def test_code_newer_than_the_process_is_refused(folder: Path) -> None:
    Path("code.py").write_text("one = 1\n")
    stage = lineage.Declared("toy", ("code.py",), (), ())
    read(stage, {}, time.time_ns())
    with pytest.raises(TransientError, match=r"^code\.py: was changed while the stage started; "):
        read(stage, {}, Path("code.py").stat().st_mtime_ns - 1)


CODE = 'def f(x):\n    """Doc."""\n    return x + 1  # one\n'


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        (CODE.replace("# one", "# two"), True),
        (CODE.replace("Doc", "Other"), True),
        (CODE.replace('    """Doc."""\n', ""), True),
        ('"""A module."""\n\n' + CODE, True),
        (CODE.replace("x + 1", "(x + 1)"), True),
        (CODE.replace("x + 1", "x + 2"), False),
        (CODE.replace("x + 1", "1 + x"), False),
        (CODE.replace('"""Doc."""', "x += 1"), False),
    ],
)
def test_code_counts_by_its_meaning(folder: Path, changed: str, same: bool) -> None:
    Path("a.py").write_text(CODE)
    Path("b.py").write_text(changed)
    assert (meaning(Path("a.py")) == meaning(Path("b.py"))) is same


@dataclass(frozen=True)
class Section:
    continue_from: str
    every: int
    lr: float

    WITHOUT_EFFECT = ("every",)


@dataclass(frozen=True)
class Params:
    pretrain: Section


def test_the_fingerprint_holds_what_changes_bytes(folder: Path) -> None:
    Path("in").write_text("1")
    Path("state").mkdir()

    def of(lr: float = 1.0, every: int = 1) -> str:
        params = Params(Section("state", every, lr))
        stage = lineage.Declared("toy", ("in",), (), ("pretrain",))
        return fingerprint(params, read(stage, {"pretrain": vars(params.pretrain)}))

    first = of()
    assert of(every=2) == first
    assert of(lr=2.0) != first
    Path("state/step").write_text("1")
    assert of() == first  # its own checkpoints come first
    Path("in").write_text("2")
    assert of() != first


@pytest.mark.parametrize("section", ["pretrain", "dpo"])
def test_keys_without_effect_are_keys(section: str) -> None:
    from stages.schema import check

    config = getattr(check(YAML(typ="safe", pure=True).load(REPO / "presets/default.yaml")), section)
    assert set(config.WITHOUT_EFFECT) < set(vars(config))
