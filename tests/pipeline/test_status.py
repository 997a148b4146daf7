"""`wordmill status`: each verdict is compared with what `dvc repro` then really does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.presets import changed
from pipeline.run_commands import status
from pipeline.status import Forecast, Verdict, differing, forecast, lines

REPRO = [sys.executable, "-m", "dvc", "repro"]
TOLD = {
    "didn't change, skipping": "skipped",
    "is cached - skipping run": "cached",
}


def repro(folder: Path) -> dict[str, str]:
    """What `dvc repro` did with each stage: ran, cached or skipped."""
    done = subprocess.run(REPRO, cwd=folder, capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("Running stage '"):
            found[line.split("'")[1]] = "ran"
        for words, what in TOLD.items():
            if line.startswith("Stage '") and words in line:
                found[line.split("'")[1]] = what
    return found


def verdicts() -> dict[str, Forecast]:
    return {each.stage: each for each in forecast()}


def put(**values: object) -> None:
    path = Path("params.yaml")
    path.write_text(changed(path.read_text(), {name.replace("__", "."): v for name, v in values.items()}, "test"))


def agrees(folder: Path) -> dict[str, Forecast]:
    """The forecast, after it was compared with the deed."""
    told = verdicts()
    allowed = {
        Verdict.RUNS: {"ran"},
        Verdict.MAY_RUN: {"ran", "skipped", "cached"},
        Verdict.CACHED: {"cached"},
        Verdict.UNCHANGED: {"skipped"},
    }
    done = repro(folder)
    for stage, each in told.items():
        assert done[stage] in allowed[each.verdict], (each, done)
    return told


def test_forecasts_come_true_and_say_why(checkout: Path) -> None:
    first = agrees(checkout)
    assert {each.verdict for each in first.values()} == {Verdict.RUNS}
    assert "never ran" in first["corpus"].reasons[0]
    assert {each.verdict for each in agrees(checkout).values()} == {Verdict.UNCHANGED}

    put(pretrain__lr=0.02, samples__top_k=3)
    lr = differing("pretrain.lr", 1, 2)
    assert next(lr) == "pretrain.lr: 1 → 2"
    told = agrees(checkout)
    assert told["corpus"].verdict is told["preferences"].verdict is Verdict.UNCHANGED
    assert told["pretrain"].verdict is told["samples"].verdict is Verdict.RUNS
    assert told["pretrain"].reasons[0].startswith("pretrain.lr: ")
    assert told["pretrain"].reasons[0].endswith(" → 0.02")
    assert "pretrain.out: pretrain runs" in told["samples"].reasons

    # Back again: the run cache knows every stage, and so that `samples` will find the old pretrain.out.
    put(pretrain__lr=0.5)
    told = verdicts()
    assert told["samples"].verdict is Verdict.MAY_RUN
    shutil.copy("presets/default.yaml", "params.yaml")
    told = agrees(checkout)
    assert told["pretrain"].verdict is told["samples"].verdict is Verdict.CACHED
    assert "pretrain.out: pretrain makes another one" in told["samples"].reasons

    Path("preferences.out").unlink()
    assert agrees(checkout)["preferences"] == Forecast("preferences", Verdict.CACHED, ("preferences.out not here",))
    Path("preferences.out").write_text("by hand")
    assert agrees(checkout)["preferences"].reasons == ("preferences.out edited here",)

    with Path("toy.py").open("a") as file:
        file.write("# a comment\n")
    told = agrees(checkout)  # nothing but the code has changed, so what follows from `corpus` only may run
    assert told["corpus"] == Forecast("corpus", Verdict.RUNS, ("toy.py changed",))


def test_a_stage_that_comes_out_as_before_spares_the_next(checkout: Path) -> None:
    pipeline = Path("dvc.yaml")
    pipeline.write_text(pipeline.read_text().replace("deps: [toy.py, corpus.out]", "deps: [corpus.out]"))
    repro(checkout)
    with Path("toy.py").open("a") as file:
        file.write("# a comment\n")
    told = verdicts()
    assert told["pretrain"].verdict is Verdict.MAY_RUN
    assert told["pretrain"].reasons == ("corpus.out: corpus runs",)
    assert repro(checkout)["pretrain"] == "skipped"


def test_nothing_in_the_cache(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repro(checkout)
    status()
    assert capsys.readouterr().out == "nothing to do: all 4 stages are up to date\n"
    shutil.rmtree(".dvc/cache")
    told = verdicts()
    assert told["corpus"].verdict is Verdict.RUNS
    assert told["corpus"].reasons == ("corpus.out not in the cache",)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, ["s.b: 2 → 3"]),
        ({"a": 1}, {"a": 1, "b": None}, ["s.b: new, None"]),
        ({"a": 1, "b": 2}, {"a": 1}, ["s.b: gone, was 2"]),
        ({"a": [1, 2]}, {"a": [1, 2]}, []),
    ],
)
def test_differing(before: object, now: object, expected: list[str]) -> None:
    assert list(differing("s", before, now)) == expected


def test_lines() -> None:
    told = lines([Forecast("a", Verdict.RUNS, ("x changed",)), Forecast("longer", Verdict.UNCHANGED)])
    assert list(told) == ["a       runs", "          x changed", "longer  unchanged"]
