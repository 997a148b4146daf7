"""The whole pipeline by its user's commands, in a copy of this checkout with a tiny model: what DVC and MLflow say.

One build is shared; every test leaves it as it was committed. The model learns nothing in so few steps: what is proven
here is that the stages fit together, repeat to the byte, and run exactly when they must.
"""

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from benchmarks.kill import Checkout, build, checkpointed, ran, survives
from stages import lineage
from tests.stages.mlflow_server import NO_STORE

STAGES = {stage.name for stage in lineage.declared(Path(__file__).parents[1] / "dvc.yaml")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The pipeline, built once and committed."""
    checkout = build(tmp_path_factory.mktemp("pipeline") / "checkout")
    assert set(checkout.lock) == STAGES
    return checkout


def test_every_output_is_there_and_nothing_is_to_do(built: Checkout) -> None:
    declared = YAML(typ="safe").load(built.folder / "dvc.yaml")["stages"]
    assert set(declared) == STAGES
    for stage in declared.values():
        for entry in [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]:
            path = built.folder / (next(iter(entry)) if isinstance(entry, dict) else entry)
            assert path.exists()
            assert not path.is_dir() or any(path.iterdir())
    lock = (built.folder / "dvc.lock").read_bytes()
    assert str(built.folder).encode() not in lock
    assert built.repro() == set()
    assert (built.folder / "dvc.lock").read_bytes() == lock
    assert built.run("git", "status", "--short") == ""  # whatever else there is, git is told to leave out
    left = [path for stage in STAGES for path in built.folder.glob(f"runs/{stage}/*/*")]
    assert {path.parent.parent.name for path in left} == {"pretrain", "dpo"}  # the last checkpoint, for more steps
    assert {path.name.partition("-")[0] for path in left} == {"about.json", "finished.json", "step"}


def test_mlflow_holds_a_run_for_every_stage(built: Checkout) -> None:
    links, own = built.newest_rebuild()
    assert own == set(links) == STAGES
    (pretrain,) = built.runs("tags.`wordmill.stage` = 'pretrain'")[:1]
    assert pretrain.data.params["pretrain.steps"] == "40"
    assert {"loss", "val_loss", "tokens_per_second", "fraction_of_peak"} <= set(pretrain.data.metrics)


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"samples__temperature": 0.7}, {"samples"}),
        ({"dpo__beta": 0.2}, {"dpo", "export"}),
        ({"pretrain__lr": 0.001}, {"pretrain", "export"}),
        ({"corpus__seed": 2}, {"download"}),
        ("llm/dpo.py", {"dpo", "export"}),
        ("llm/tokenizer/bpe.py", {"tokenizer"}),
        ("stages/templates/report.html", {"report"}),
    ],
)
def test_a_change_touches_exactly_its_stages(built: Checkout, change: dict[str, Any] | str, touched: set[str]) -> None:
    if isinstance(change, str):
        with (built.folder / change).open("a") as file:
            file.write("\n# a comment\n")
    else:
        built.put(**change)
    try:
        assert built.changed_stages() == touched
    finally:
        built.run("git", "checkout", "-q", ".")


def test_a_change_reruns_what_follows_and_links_the_rest(built: Checkout) -> None:
    before, _ = built.newest_rebuild()
    lock = built.lock
    built.put(samples__temperature=0.7)
    assert built.repro() == {"samples", "report"}
    links, own = built.newest_rebuild()
    assert own == {"samples", "report"}
    assert {stage for stage in STAGES if links[stage] != before[stage]} == own
    assert set(links) == STAGES
    built.put(samples__temperature=0.8)
    assert built.repro() == set()  # it was made before: DVC has it
    assert built.lock == lock
    built.restore()


def test_killed_in_the_middle_or_not_a_forced_rebuild_gives_the_same_bytes(built: Checkout) -> None:
    built = replace(built, environment=built.environment | {"MLFLOW_TRACKING_URI": NO_STORE})
    process = subprocess.Popen(
        ["dvc", "repro", "-f", "-s", "pretrain"],
        cwd=built.folder,
        env=built.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not checkpointed(built, "pretrain"):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert checkpointed(built, "pretrain"), "it ended before it was killed"
    assert not (built.folder / "models/base").exists()

    lock = (built.folder / "dvc.lock").read_bytes()
    before = built.lock
    log = built.run("dvc", "repro", "-f")
    assert ran(log) == STAGES
    assert "resuming after step" in log
    assert built.lock == before
    assert (built.folder / "dvc.lock").read_bytes() == lock
    assert built.run("git", "status", "--short") == ""


def test_killed_at_any_moment_dvc_repro_gives_the_same_bytes(built: Checkout) -> None:
    """One of those that `python -m benchmarks.kill` does a hundred of."""
    assert survives(built, "dpo", 3.5).same  # a kill while a finished run clears up may leave half a checkpoint
    built.restore()


def test_told_to_stop_in_the_middle_dvc_repro_gives_the_same_bytes(built: Checkout) -> None:
    """By SIGTERM to DVC and the stage alike, once there is a checkpoint."""
    outcome = survives(built, "pretrain", 0.0, trained=True, signum=signal.SIGTERM)
    assert outcome.same
    assert outcome.resumed or not outcome.killed
    runs = built.runs("tags.`wordmill.stage` = 'pretrain'")
    assert runs[-1].info.status == "FINISHED"
    assert runs[-1].data.metrics["val_loss"] == runs[0].data.metrics["val_loss"]
    assert built.runs("attributes.status = 'RUNNING'") == []
    built.restore()


def test_experiments_metrics_and_plots(built: Checkout) -> None:
    built = replace(built, environment=built.environment | {"MLFLOW_TRACKING_URI": NO_STORE})
    log = built.run("dvc", "exp", "run", "-n", "shorter", "-S", "pretrain.steps=8", "pretrain")
    assert ran(log) == {"pretrain"}
    shown = built.run("dvc", "exp", "show", "--csv")
    assert "shorter" in shown
    assert "bits_per_byte" in shown
    assert "bits_per_byte" in built.run("dvc", "metrics", "show")
    assert "pretrain" in built.run("dvc", "metrics", "diff", "--md")
    assert "index.html" in built.run("dvc", "plots", "show")
    assert "pretrain" in built.run("dvc", "dag", "--mermaid")
    built.restore()
    assert built.changed_stages() == set()
