"""Stages through DVC: what is told of them, and that no process outlives whoever started it."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from llm.errors import WordmillError
from pipeline import dvc
from pipeline.presets import changed
from tests.waiting import wait_for


def lines_of(stage: str, force: bool = False) -> tuple[dvc.Outcome, list[str]]:
    lines: list[str] = []
    return dvc.run(stage, lines.append, force), lines


def change(**values: object) -> None:
    path = Path("params.yaml")
    path.write_text(changed(path.read_text(), {name.replace("__", "."): v for name, v in values.items()}, "test"))


def test_graph_is_dvcs_own_and_in_order(checkout: Path) -> None:
    graph = dvc.graph()
    assert graph == {
        "corpus": (),
        "preferences": ("corpus",),
        "pretrain": ("corpus",),
        "samples": ("preferences", "pretrain"),
    }
    order = list(graph)
    assert all(order.index(needed) < order.index(stage) for stage in graph for needed in graph[stage])


def test_graph_of_a_broken_pipeline_is_one_line(checkout: Path) -> None:
    Path("dvc.yaml").write_text("stages: {a: {cmd: x, outz: [y]}}")
    with pytest.raises(WordmillError, match=r"^DVC: .*dvc\.yaml") as caught:
        dvc.graph()
    assert "\n" not in str(caught.value)


def test_outcomes(checkout: Path) -> None:
    outcome, lines = lines_of("corpus")
    assert outcome is dvc.Outcome.RAN
    assert "made corpus" in lines
    assert not any("git add" in line or "dvc push" in line for line in lines)
    assert dvc.is_unchanged("corpus")
    assert lines_of("corpus")[0] is dvc.Outcome.UNCHANGED
    assert lines_of("corpus", force=True)[0] is dvc.Outcome.RAN
    change(corpus__documents=77)
    assert not dvc.is_unchanged("corpus")
    assert lines_of("corpus")[0] is dvc.Outcome.RAN
    change(corpus__documents=30000)
    assert lines_of("corpus")[0] is dvc.Outcome.CACHED


def test_failure_carries_the_stages_own_line(checkout: Path) -> None:
    for stage in ("corpus", "pretrain", "preferences"):
        dvc.run(stage, lambda line: None)
    change(samples__top_k=13)
    with pytest.raises(dvc.StageFailedError) as caught:
        lines_of("samples")
    assert str(caught.value) == "samples: top_k: 13 is bad luck; use 12"
    Path("toy.py").write_text("raise ValueError('deep down')\n")
    with pytest.raises(dvc.StageFailedError) as caught:
        lines_of("corpus")
    assert str(caught.value) == "corpus: ValueError: deep down"
    with pytest.raises(dvc.StageFailedError) as caught:
        lines_of("corpse")
    assert "corpse" in str(caught.value)


def toys(folder: Path) -> list[psutil.Process]:
    """The processes of toy stages that run in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = process.info["cmdline"] or []
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if alive and process.info["cwd"] == str(folder) and any(w in ("toy.py", "pipeline.dvc") for w in words):
            found.append(process)
    return found


class CancelledError(BaseException):
    pass


def test_leaving_a_stage_ends_all_its_processes(checkout: Path) -> None:
    for stage in ("corpus", "pretrain", "preferences"):
        dvc.run(stage, lambda line: None)
    change(samples__top_k=14)

    def tell(line: str) -> None:
        if line.startswith("> "):
            wait_for(Path("waiting").exists)
            assert len(toys(checkout)) >= 2
            raise CancelledError

    with pytest.raises(CancelledError):
        dvc.run("samples", tell)
    assert toys(checkout) == []


def test_a_time_limit_ends_all_its_processes(checkout: Path) -> None:
    for stage in ("corpus", "pretrain", "preferences"):
        dvc.run(stage, lambda line: None)
    change(samples__top_k=14)
    with pytest.raises(dvc.StageFailedError, match=r"^samples: stopped at the time limit of 1\.5 s; ") as caught:
        dvc.run("samples", lambda line: None, seconds=1.5)
    assert not caught.value.transient
    assert toys(checkout) == []
    Path("flaky").touch()
    with pytest.raises(dvc.StageFailedError, match=r"^samples: the network was away$") as caught:
        dvc.run("samples", lambda line: None)
    assert caught.value.transient


def test_stages_from_and_until() -> None:
    graph = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ("c",)}
    assert dvc.between(graph, None, None) == ["a", "b", "c", "d", "e"]
    assert dvc.between(graph, "b", None) == ["b", "d"]
    assert dvc.between(graph, None, "d") == ["a", "b", "c", "d"]
    assert dvc.between(graph, "c", "e") == ["c", "e"]
    with pytest.raises(WordmillError, match=r"^from_stage, until_stage: e does not follow from b"):
        dvc.between(graph, "b", "e")
    with pytest.raises(WordmillError, match=r"^until_stage: 'f' is no stage; there are a, b, c, d, e"):
        dvc.between(graph, None, "f")


def test_beginning_after_a_stage_that_never_ran(checkout: Path) -> None:
    graph = dvc.graph()
    with pytest.raises(WordmillError, match=r"^from_stage: pretrain needs corpus\.out, which corpus makes and"):
        dvc.check_inputs(graph, ["pretrain", "samples"])


PARENT = "from pipeline import dvc; dvc.run('samples', print)"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_killing_who_started_a_stage_ends_all_its_processes(checkout: Path) -> None:
    for stage in ("corpus", "pretrain", "preferences"):
        dvc.run(stage, lambda line: None)
    change(samples__top_k=14)
    # The real stages ask the kernel for this themselves (stages.stage.main); so does this one.
    code = Path("toy.py").read_text()
    asking = "import os, signal\nfrom stages.processes import die_with_parent\n"
    asking += "die_with_parent(signal.SIGTERM, os.getppid())\n"
    Path("toy.py").write_text(asking + code)
    for stage in ("corpus", "pretrain", "preferences"):
        dvc.run(stage, lambda line: None)
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.DEVNULL)
    try:
        wait_for(Path("waiting").exists)
        assert len(toys(checkout)) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not toys(checkout))


def test_independent_stages_at_the_same_time(checkout: Path) -> None:
    dvc.run("corpus", lambda line: None)
    outcomes: dict[str, dvc.Outcome] = {}
    threads = [
        threading.Thread(target=lambda name=name: outcomes.update({name: dvc.run(name, lambda line: None)}))
        for name in ("pretrain", "preferences")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == dict.fromkeys(("pretrain", "preferences"), dvc.Outcome.RAN)
    assert dvc.is_unchanged("pretrain")
    assert dvc.is_unchanged("preferences")
