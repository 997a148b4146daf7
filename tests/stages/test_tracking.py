"""What a stage leaves in MLflow, read back with MLflow's own client; stages are killed.

What a store does not take at once has tests of its own: test_delivery.py.
"""

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from llm.errors import WordmillError
from stages import history, last_lines, lineage, provenance
from stages.delivery import deliver_kept
from stages.lineage import digest
from stages.system_metrics import Sampler
from stages.tracking import Tracker
from tests.waiting import LIMIT

REPO = Path(__file__).parents[2]


def runs(kind: str) -> list[Run]:
    """The experiment's runs, oldest first."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    if experiment is None:
        return []
    query = f"tags.`wordmill.kind` = '{kind}'"
    return list(client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time ASC"]))


def artifacts(run: Run) -> dict[str, Path]:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_child_and_parent_hold_everything(folder: Path) -> None:
    git("init", "-q")
    Path("code.py").write_text("a = 1\n")
    Path(".gitignore").write_text("/runs/\n/*.yaml\n/*.json\n")
    git("add", ".")
    git("commit", "-qm", "one")
    Path("code.py").write_bytes(b"a = 2 # \xe9\n")
    Path("stages").mkdir()
    Path("stages/new.py").write_text("b = 3\n")
    Path("params.yaml").write_text("pretrain: {lr: 0.001, betas: [0.9, 0.99]}\n")
    Path("dvc.yaml").write_text("stages: {pretrain: {cmd: x, params: [pretrain]}}\n")
    Path("config.json").write_text("{}")

    with Tracker(
        "pretrain", {"pretrain.lr": 0.001, "pretrain.betas": (0.9, 0.99)}, {"code.py": "ab"}, "f00"
    ) as tracker:
        for step in range(1500):
            tracker.metrics({"loss": 2.0 / (step + 1), "lr": 0.001}, step=step)
        tracker.artifact(Path("config.json"), "model")
        tracker.dataset("shards", "data/shards", "c" * 64, {"tokens": 12})
        tracker.tags({"device": "cpu"})
        tracker.headlines({"loss": 2.0 / 1500, "source.bits (low)": 0.25})
        tracker.outputs({"models/base": "dd"})

    (child,), (parent,) = runs("stage"), runs("rebuild")
    assert child.info.status == parent.info.status == "FINISHED"
    assert child.info.run_name == "pretrain"
    assert child.data.params == {"pretrain.lr": "0.001", "pretrain.betas": "[0.9, 0.99]"}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert child.data.tags["device"] == "cpu"
    assert float(child.data.tags["hardware.memory_gib"]) > 0
    assert json.loads(child.data.tags["wordmill.outputs"]) == {"models/base": "dd"}
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    history = client.get_metric_history(child.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, 2.0 / (step + 1)) for step in range(1500)]
    (data,) = child.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("shards", "c" * 36)
    assert json.loads(data.dataset.profile) == {"tokens": 12}
    files = artifacts(child)
    assert set(files) >= {"model/config.json", "lineage/outputs.json", "code/uncommitted.patch"}
    assert json.loads(files["lineage/inputs.json"].read_text()) == {"code.py": "ab"}
    assert "mlflow==" in files["environment/packages.txt"].read_text()

    assert parent.data.params["pretrain.betas"] == "[0.9, 0.99]"
    assert parent.data.tags["stage.pretrain"] == child.info.run_id
    assert parent.data.metrics == {"pretrain/loss": 2.0 / 1500, "pretrain/source.bits _low_": 0.25}
    experiment = client.get_experiment(parent.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert set(artifacts(parent)) == {"params.yaml", "dvc.yaml", "code/uncommitted.patch"}

    # The patch is whole: on the commit alone it gives the very files.
    patch = files["code/uncommitted.patch"].rename(folder / "p.patch")
    expected = {name: Path(name).read_bytes() for name in ("code.py", "stages/new.py")}
    git("checkout", "-q", "code.py")
    Path("stages/new.py").unlink()
    git("apply", str(patch))
    assert {name: Path(name).read_bytes() for name in expected} == expected


def test_failure_then_success_in_one_rebuild(direct: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDMILL_REBUILD", "prefect-0b5f")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setattr(last_lines, "_pieces", deque(["step 1\r", "step 2\r", "step 3\n", "the last\n"]))

    def fail() -> None:
        with Tracker("dpo", {}, {}, "k") as tracker:
            tracker.metrics({"loss": 1.0})
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    (child,), (parent,) = runs("stage"), runs("rebuild")
    assert (child.info.status, parent.info.status) == ("FAILED", "FAILED")
    assert child.data.tags["error"] == "ValueError: no"
    assert child.data.metrics == {"loss": 1.0}
    assert child.data.tags["prefect.flow_run_id"] == parent.data.tags["prefect.flow_run_id"] == "0b5f"
    log = artifacts(child)["log/last_lines.txt"].read_text()
    assert log.startswith("step 3\nthe last\n\nTraceback (most recent call last):\n")
    assert log.endswith("ValueError: no")

    with Tracker("dpo", {}, {}, "k"):
        pass
    (parent,) = runs("rebuild")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["stage.dpo"] == runs("stage")[1].info.run_id


PIPELINE = """
stages:
  c: {cmd: x, params: [c], deps: [code.py, out/b], outs: [out/c]}
  a: {cmd: x, params: [a], deps: [code.py], outs: [out/a]}
  b: {cmd: x, params: [b], deps: [out/a], outs: [out/b: {cache: false}]}
"""


def run_stage(name: str, output: str | None = None) -> None:
    """A stage as stages.stage runs it; its output is a function of its inputs unless given."""
    (stage,) = [stage for stage in lineage.declared() if stage.name == name]
    document = json.loads(Path("params.yaml").read_text())
    params = lineage.flat({section: document[section] for section in stage.sections})
    inputs = {dep: digest(Path(dep)) for dep in stage.deps}
    with Tracker(name, params, inputs, "k") as tracker:
        tracker.metrics({"score": float(document[name]["x"]), "on_the_way": 1.0})
        tracker.headlines({"score": float(document[name]["x"])})
        out = Path(stage.outs[0])
        out.parent.mkdir(exist_ok=True)
        out.write_text(output or lineage.key(name, params, inputs))
        tracker.outputs({str(out): digest(out)})


def links() -> dict[str, str]:
    """What the newest parent links: stage name and the rebuild in which the run was made."""
    parent = runs("rebuild")[-1]
    by_id = {run.info.run_id: run.data.tags["wordmill.rebuild"] for run in runs("stage")}
    tags = parent.data.tags
    return {name.removeprefix("stage."): by_id[tags[name]] for name in tags if name.startswith("stage.")}


def test_parent_links_the_runs_that_made_what_was_skipped(direct: None, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dvc.yaml").write_text(PIPELINE)
    Path("code.py").write_text("x = 1\n")
    params = {"a": {"x": 1.0}, "b": {"x": 2}, "c": {"x": [3]}}

    def write(name: str, x: Any) -> None:
        params[name] = {"x": x}
        Path("params.yaml").write_text(json.dumps(params))

    write("c", 3)
    for name in "abc":
        run_stage(name)
    assert links() == {"a": "first", "b": "first", "c": "first"}

    monkeypatch.setenv("WORDMILL_REBUILD", "second")
    write("c", 4)
    run_stage("c")
    assert links() == {"a": "first", "b": "first", "c": "second"}
    assert runs("rebuild")[-1].data.metrics == {"a/score": 1.0, "b/score": 2.0, "c/score": 4.0}
    assert len(runs("stage")) == 4  # a skipped stage leaves no run

    # `b` alone reruns and gives the same bytes, so DVC skips `c`; its link needs no run after `b`.
    monkeypatch.setenv("WORDMILL_REBUILD", "third")
    kept = Path("out/b").read_text()
    write("b", 5)
    run_stage("b", output=kept)
    assert links() == {"a": "first", "b": "third", "c": "second"}

    # `a` now gives other bytes, and nothing is known of what follows until it has run.
    monkeypatch.setenv("WORDMILL_REBUILD", "fourth")
    write("a", 9)
    run_stage("a")
    assert links() == {"a": "fourth"}
    table = runs("rebuild")[-1].data.tags["mlflow.note.content"]
    assert "in this rebuild" in table
    assert "| b |" not in table

    # Back to what was: the parent names the newest run that made each.
    monkeypatch.setenv("WORDMILL_REBUILD", "fifth")
    write("a", 1)
    run_stage("a")
    assert links() == {"a": "fifth", "b": "third", "c": "second"}


def test_a_rebuild_is_read_back(direct: None, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dvc.yaml").write_text(PIPELINE)
    Path("code.py").write_text("x = 1\n")
    Path("params.yaml").write_text(text := json.dumps({"a": {"x": 1.0}, "b": {"x": 2}, "c": {"x": 3}}))
    for name in "abc":
        run_stage(name)
    monkeypatch.setenv("WORDMILL_REBUILD", "second")
    run_stage("c")

    second = history.find("latest")
    (first_run, second_run), children = runs("rebuild"), runs("stage")
    assert second.run_id == second_run.info.run_id
    assert (second.params, second.metrics) == (text, {"a/score": 1.0, "b/score": 2.0, "c/score": 3.0})
    assert [record.run_id for record in second.stages.values()] == [children[i].info.run_id for i in (0, 1, 3)]
    b = second.stages["b"]
    assert (b.params, b.status) == ({"b.x": "2"}, "FINISHED")
    assert b.inputs == {"out/a": digest(Path("out/a"))}
    assert b.outputs == {"out/b": digest(Path("out/b"))}
    assert b.packages["mlflow"] == importlib.metadata.version("mlflow")
    assert b.hardware == provenance.hardware()

    # By the beginning of its id, by its name, and by a run of one of its stages.
    for word in (first_run.info.run_id[:12], children[0].info.run_id):
        assert history.find(word).run_id == first_run.info.run_id
    if first_run.info.run_name != second_run.info.run_name:  # they name the second of their start
        assert history.find(first_run.info.run_name).run_id == first_run.info.run_id
    with pytest.raises(WordmillError, match=rf"^nothing: no such run in .*{second.run_id[:8]}"):
        history.find("nothing")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/none.db")
    with pytest.raises(WordmillError, match=r"^none\.db: not found, so there are no runs"):
        history.find("latest")


STAGE = """
import os, sys, time
from dataclasses import dataclass
from pathlib import Path
from stages import params as params_file
from stages.stage import Stage, main

@dataclass(frozen=True)
class Params:
    pass

def run(params, stage):
    stage.metrics({"loss": 1.5}, step=3)
    Path(f"{stage.name}.out").write_text(stage.name)
    Path(f"{stage.name}.ready").touch()
    time.sleep(float(os.environ.get("TOY_SECONDS", 0)))
    Path(f"{stage.name}.json").write_text('{"loss": 1.5, "opening": "Once"}')

params_file.defaults = lambda: {}  # its sections are its own
main(sys.argv[1], Params, run)
"""


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start toy stages as processes of their own; whatever still runs at the end of the test is killed."""
    Path("toy.py").write_text(textwrap.dedent(STAGE))
    stages = {name: {"cmd": "x", "outs": [f"{name}.out"], "metrics": [f"{name}.json"]} for name in "abcd"}
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    Path("params.yaml").write_text("{}")
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, seconds: float = 0) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(REPO), "TOY_SECONDS": str(seconds)}
        command = [sys.executable, "toy.py", name]
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        kill_all_of(process)


def kill_all_of(process: subprocess.Popen[Any]) -> None:
    """End a stage and the process that delivers for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(condition: Callable[[], Any], seconds: float = LIMIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def test_terminated_and_killed_processes(folder: Path, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    terminated, killed, lost = start("a", 60), start("b", 60), start("c", 60)
    wait_for(lambda: len([run for run in runs("stage") if run.data.metrics]) == 3)
    assert len(runs("rebuild")) == 1  # though all started at once
    assert runs("rebuild")[0].info.status == "RUNNING"
    terminated.send_signal(signal.SIGTERM)
    killed.kill()  # it can close nothing itself
    assert terminated.wait(180) == 143

    def statuses() -> dict[str, str]:
        return {run.info.run_name: run.info.status for run in runs("stage")}

    wait_for(lambda: statuses() == {"a": "KILLED", "b": "KILLED", "c": "RUNNING"})

    kill_all_of(lost)
    assert statuses()["c"] == "RUNNING"
    assert start("d").wait(180) == 0  # the next stage finds the lost one
    assert statuses() == {"a": "KILLED", "b": "KILLED", "c": "KILLED", "d": "FINISHED"}
    (parent,) = runs("rebuild")
    assert parent.info.status == "KILLED"
    assert parent.data.metrics == {"d/loss": 1.5}  # the others had not come to their metrics file
    assert all(run.data.metrics == {"loss": 1.5} for run in runs("stage"))


def test_terminated_before_mlflow_is_imported(folder: Path, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = start("a", 60)
    wait_for(Path("a.ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(180) == 143
    for path in Path("runs/undelivered").glob("*.jsonl"):  # a machine so busy that MLflow was not there in time
        assert json.loads(path.read_text().splitlines()[-1])["status"] == "KILLED"
        deliver_kept(os.environ["MLFLOW_TRACKING_URI"], print)
    (child,) = runs("stage")
    assert (child.info.status, child.data.metrics) == ("KILLED", {"loss": 1.5})


def test_stages_of_one_dvc_repro_share_a_parent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORDMILL_REBUILD")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    Path("toy.py").write_text(textwrap.dedent(STAGE))
    command = f"{sys.executable} toy.py"
    stages: dict[str, Any] = {
        "a": {"cmd": f"{command} a", "deps": ["in"], "outs": ["a.out"]},
        "b": {"cmd": f"{command} b", "deps": ["a.out"], "outs": ["b.out"]},
    }
    Path("dvc.yaml").write_text(json.dumps({"stages": stages}))
    Path("params.yaml").write_text("{}")
    Path("in").write_text("1")
    dvc = Path(sys.executable).with_name("dvc")
    subprocess.run([dvc, "init", "-q", "--no-scm"], check=True)

    def repro() -> None:
        subprocess.run([dvc, "repro", "-q"], check=True)

    repro()
    assert len(runs("rebuild")) == 1
    repro()
    assert (len(runs("rebuild")), len(runs("stage"))) == (1, 2)
    Path("in").write_text("2")  # `a` reruns and gives the same, so `b` does not
    repro()
    old, new = runs("rebuild")
    assert [run.info.run_name for run in runs("stage")] == ["a", "b", "a"]
    assert new.data.tags["stage.a"] != old.data.tags["stage.a"]
    assert new.data.tags["stage.b"] == old.data.tags["stage.b"]
    assert old.info.status == new.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlruns", "use sqlite:///path/to/mlflow.db"),
        ("file:///tmp/mlruns", "use sqlite:///path/to/mlflow.db"),
        ("htp://localhost:5000", "no tracking store"),
        ("http://", "names no host"),
        ("sqlite:////nowhere/at/all/mlflow.db", "/nowhere/at/all does not exist"),
        ("sqlite:///note.txt", "not a database"),
    ],
)
def test_wrong_address_is_an_error_of_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    Path("note.txt").write_text("a text, and no database of SQLite's\n" * 9)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(WordmillError) as caught, Tracker("dpo", {}, {}, "k"):
        pass
    assert str(caught.value).startswith("MLFLOW_TRACKING_URI: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deleted_experiment_is_an_error(direct: None) -> None:
    with Tracker("dpo", {}, {}, "k"):
        pass
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    assert experiment
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(WordmillError, match="mlflow experiments restore"), Tracker("dpo", {}, {}, "k"):
        pass


def test_keys_of_typed_params_and_of_the_file_agree() -> None:
    typed = {"pretrain.lr": 1.0, "samples.prompts": ("a", "b"), "dpo.on": True, "evaluate.seed": None}
    as_read = {"pretrain.lr": 1, "samples.prompts": ["a", "b"], "dpo.on": True, "evaluate.seed": None}
    assert lineage.key("s", typed, {"f": "1"}) == lineage.key("s", as_read, {"f": "1"})
    assert lineage.key("s", typed, {"f": "1"}) != lineage.key("s", typed | {"pretrain.lr": 1.5}, {"f": "1"})
    assert lineage.key("s", typed, {"f": "1"}) != lineage.key("s", typed, {"f": "2"})


def test_the_stages_own_use_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "60")
    busy = "import time; block = b'x' * 200_000_000; print(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        used = psutil.Process(process.pid)
        before = sum(used.cpu_times()[:2])
        sampler = Sampler(process.pid)
        began = time.monotonic()
        # Longer than the half second below which a sampler takes none; a busy machine gives it less than a processor.
        wait_for(lambda: sum(used.cpu_times()[:2]) > before + 0.7)
        (event,) = sampler.taken(last=True)
        passed = time.monotonic() - began
    finally:
        process.kill()
        process.communicate()
    values = event["values"]
    assert 200 < values["system/stage_memory_megabytes"] < 300
    assert 20 / passed < values["system/stage_cpu_percentage"] < 130 * max(1, 1 / passed)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(values)
    assert sampler.taken() == []
