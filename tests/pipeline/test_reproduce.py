"""A run got back: a toy pipeline is built, recorded, and rebuilt in a worktree; then one thing is made to differ."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.errors import WordmillError
from pipeline import compare, differences, dvc
from pipeline.compare import StageDifference
from pipeline.presets import changed
from pipeline.reproduce import Options, Result, lines, reproduce
from stages import lineage, params, provenance
from stages.history import Rebuild, StageRecord, versions
from stages.lineage import digest
from stages.uncommitted import uncommitted

NOWHERE = b"diff --git a/none b/none\n--- a/none\n+++ b/none\n@@ -1 +1 @@\n-a\n+b\n"


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def recorded() -> Rebuild:
    """What a rebuild of the folder as it is would leave in MLflow."""
    patch, left_out = uncommitted()
    content = params.document()
    packages, hardware = versions(provenance.packages()), provenance.hardware()
    stages = {
        stage.name: StageRecord(
            name=stage.name,
            run_id=stage.name,
            status="FINISHED",
            params={k: str(v) for k, v in lineage.flat({name: content[name] for name in stage.sections}).items()},
            inputs={path: digest(Path(path)) for path in stage.deps},
            outputs={path: digest(Path(path)) for path in stage.outs},
            packages=packages,
            hardware=hardware,
        )
        for stage in lineage.declared()
    }
    text = Path("params.yaml").read_text()
    commit = provenance.commit()
    return Rebuild("f00dfeed" * 4, "rebuild one", "FINISHED", commit, patch, left_out, text, {}, stages)


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, make_checkout: Callable[[Path], Path], quiet: dict[str, str]
) -> Iterator[Rebuild]:
    """The toy pipeline at a commit and with changes that nobody committed: to the code, the params, a new file."""
    folder = make_checkout(tmp_path_factory.mktemp("reproduce") / "checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in quiet.items():
            patch.setenv(name, value)
        yield _built()


def _built() -> Rebuild:
    with Path(".gitignore").open("a") as file:
        file.write("/*.out\n/mine/\n")
    git("add", ".")
    git("commit", "-qm", "one")
    code = Path("toy.py").read_text().replace("repr([name", "Path('presets/extra.yaml').read_text() + repr([name")
    Path("toy.py").write_text(code)
    Path("presets/extra.yaml").write_text("not in git\n")
    Path("params.yaml").write_text(changed(Path("params.yaml").read_text(), {"pretrain.lr": 0.25}, "test"))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], check=True)
    run = recorded()
    # The checkout goes on: what it is now must not matter.
    git("add", ".")
    git("commit", "-qm", "two")
    Path("presets/extra.yaml").write_text("later\n")
    Path("params.yaml").write_text(Path("presets/default.yaml").read_text())
    return run


def rebuilt(run: Rebuild, **options: Any) -> tuple[Result, list[str], list[str]]:
    told: list[str] = []
    result = reproduce(run, Options(**options), told.append)
    return result, told, list(lines(run, result))


def test_all_bytes_again_and_really_rebuilt(built: Rebuild) -> None:
    result, told, printed = rebuilt(built)
    assert result.same
    assert printed[-1] == "4 of 4 stages have the bytes of rebuild one"
    assert {line for line in told if line.startswith("made ")} == {f"made {name}" for name in built.stages}
    assert git("worktree", "list").count("\n") == 0  # nothing is left of it
    assert dvc.graph().keys() == built.stages.keys()

    result, told, _ = rebuilt(built, cached=True, keep=True)
    assert result.same
    assert not [line for line in told if line.startswith("made ")]
    assert dvc.graph().keys() == built.stages.keys()  # a worktree inside the checkout is not taken for a part of it
    result, told, _ = rebuilt(built, cached=True)
    assert "going on with what an earlier try has left" in told
    assert result.folder is None


def test_an_edited_line_and_another_package(built: Rebuild) -> None:
    Path("presets/extra.yaml").write_text("not in git\n")
    Path("toy.py").write_text(Path("toy.py").read_text().replace("repr([name,", "repr(['edited', name,"))
    older = {
        name: dataclasses.replace(record, packages={**record.packages, "torch": "2.0.0", "gone": "1"})
        for name, record in built.stages.items()
    }
    run = dataclasses.replace(built, stages=older)
    result, _, printed = rebuilt(run, here=True, until="pretrain")
    git("checkout", "-q", ".")
    assert not result.same
    assert list(result.stages) == ["corpus", "pretrain"]
    found = result.stages["pretrain"]
    assert found is not None
    assert found.outputs == ("pretrain.out",)
    assert found.causes["code"] == ("toy.py",)
    assert found.causes["data"] == ("corpus.out",)
    torch = versions(provenance.packages())["torch"]
    assert found.causes["packages"] == (f"torch 2.0.0 → {torch}", "gone 1 → (none)")
    assert "code: toy.py" in " ".join(printed)
    assert printed[-1].startswith("kept in ")


def test_another_package_and_the_same_bytes(built: Rebuild) -> None:
    stages = {n: dataclasses.replace(r, packages={**r.packages, "torch": "2.0.0"}) for n, r in built.stages.items()}
    result, _, printed = rebuilt(dataclasses.replace(built, stages=stages), until="corpus", cached=True)
    assert result.same
    assert "although other packages: torch 2.0.0 → " in printed[-1]


def test_a_stage_that_fails_and_one_that_is_never_made(built: Rebuild) -> None:
    run = dataclasses.replace(built, params=changed(built.params, {"pretrain.steps": 70, "samples.top_k": 13}, "test"))
    result, _, printed = rebuilt(run)
    assert not result.same
    assert result.failure == "samples: top_k: 13 is bad luck; use 12"
    assert result.stages["samples"] is None
    pretrain = result.stages["pretrain"]
    assert pretrain is not None
    assert pretrain.causes["params"] == ("pretrain.steps 1250 → 70",)
    assert "samples      not made" in printed


def test_what_cannot_be_begun_is_one_line(built: Rebuild) -> None:
    with pytest.raises(WordmillError, match=r"commit 00000000.* is not in this repository"):
        rebuilt(dataclasses.replace(built, commit="0" * 40))
    with pytest.raises(WordmillError, match="not in a git repository"):
        rebuilt(dataclasses.replace(built, commit=None))
    with pytest.raises(WordmillError, match=r"--until nothing: .* it has corpus, pretrain"):
        rebuilt(built, until="nothing")
    with pytest.raises(WordmillError, match="git apply: "):
        rebuilt(
            dataclasses.replace(built, patch=b"diff --git a/none b/none\n--- a/none\n+++ b/none\n@@ -1 +1 @@\n-a\n+b\n")
        )


def test_the_users_own_files_are_linked(built: Rebuild) -> None:
    Path("mine").mkdir()
    Path("mine/a.txt").write_text("text")
    run = dataclasses.replace(built, params=changed(built.params, {"corpus.paths": ["mine/*.txt"]}, "test"))
    result, _, _ = rebuilt(run, until="corpus")
    assert result.folder is not None
    assert (result.folder / "mine/a.txt").read_text() == "text"


def test_two_records_are_compared_by_kind() -> None:
    before = StageRecord("s", "1", "FINISHED", {"p.x": "1", "p.y": "[1, 2]"}, {"data/a": "1", "llm/a.py": "1"})
    now = StageRecord("s", "2", "FINISHED", {"p.x": "2", "p.y": "[1.0, 2]"}, {"data/a": "2", "llm/a.py": "2"})
    now = dataclasses.replace(now, sources={"mine": "2"})
    found = compare.stage(before, now, ["data"])
    assert found == StageDifference(
        "s", (), {"params": ("p.x 1 → 2",), "code": ("llm/a.py",), "data": ("data/a", "mine (yours)")}
    )


def test_the_difference_of_two_runs() -> None:
    def run(mark: str, lr: float, **metrics: float) -> Rebuild:
        data = StageRecord("data", "d", "FINISHED", {}, {"llm/a.py": "1"}, {"data/a": "1"}, packages={"torch": mark})
        model = StageRecord("model", "m", "FINISHED", {}, {"data/a": "1"}, {"models": mark}, packages={"torch": mark})
        params = f"model: {{lr: {lr}, steps: 3}}\n"
        stages = {"data": data, "model": model}
        return Rebuild(mark * 32, f"rebuild {mark}", "FINISHED", mark * 40, b"", {}, params, metrics, stages)

    told = list(differences.lines(run("1", 0.5, loss=2.0, same=1.0), run("2", 0.25, loss=1.5, same=1.0, new=3.0)))
    assert told == [
        "A  11111111  rebuild 1  FINISHED  111111111111",
        "B  22222222  rebuild 2  FINISHED  222222222222",
        "",
        "params:",
        "  model.lr: 0.5 → 0.25",
        "code: the same",
        "data: the same",
        "packages:",
        "  torch 1 → 2  (all stages)",
        "hardware: the same",
        "outputs:",
        "  model: models",
        "",
        "metric  A  B    B - A",
        "loss    2  1.5  -0.5",
        "new        3",
        "metrics: 2 differ, 1 are the same",
    ]
