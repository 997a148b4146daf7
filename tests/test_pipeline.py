"""The whole pipeline by its user's commands, in a copy of this checkout with a tiny model: what DVC and MLflow say.

One build is shared; every test leaves it as it was committed. The model learns nothing in so few steps: what is proven
here is that the stages fit together, repeat to the byte, and run exactly when they must.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML

from pipeline.presets import changed

REPO = Path(__file__).parents[1]
STAGES = {
    "download",
    "tokenizer",
    "shards",
    "pretrain",
    "preferences",
    "dpo",
    "evaluate",
    "samples",
    "export",
    "report",
}
TINY: dict[str, Any] = {
    "corpus.documents": 400,
    "corpus.val_share": 0.05,
    "corpus.test_share": 0.05,
    "tokenizer.vocab_size": 600,
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_kv_head": 1,
    "model.d_model": 32,
    "model.d_ff": 64,
    "model.block_size": 256,
    "pretrain.steps": 40,
    "pretrain.batch_size": 4,
    "pretrain.micro_batch_size": 4,
    "pretrain.warmup_steps": 2,
    "pretrain.log_every": 4,
    "pretrain.eval_every": 20,
    "pretrain.eval_documents": 5,
    "pretrain.sample_every": 10,
    "pretrain.checkpoint_every": 4,
    "preferences.source": "stories",  # a model of 40 steps writes nothing that the judge could prefer
    "preferences.pairs": 80,
    "preferences.pairs_per_story": 2,
    "dpo.warmup_steps": 1,
    "dpo.scope": "fork",
    "dpo.sft_weight": 1.0,
    "dpo.batch_size": 8,
    "dpo.log_every": 2,
    "dpo.eval_every": 4,
    "dpo.checkpoint_every": 3,
    "evaluate.documents": 10,
    "evaluate.stories": 10,
    "samples.count": 2,
    "samples.temperature": 0.8,
    "samples.max_new_tokens": 20,
    "compute.device": "cpu",
    "compute.threads": 1,
}


@dataclass(frozen=True)
class Checkout:
    """A folder in which commands run as a user runs them."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """What a command that succeeds prints to standard output."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True)
        assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-3000:]
        return done.stdout.decode(errors="replace")

    def repro(self, *options: str) -> set[str]:
        """Run `dvc repro`; the stages that it really ran."""
        return ran(self.run("dvc", "repro", *options))

    def changed_stages(self) -> set[str]:
        """The stages that something was changed for by hand; what follows from them is not known before they ran."""
        return set(YAML(typ="safe").load(self.run("dvc", "status", "--json")))

    def put(self, **values: Any) -> None:
        """Change params: section__key=value."""
        path = self.folder / "params.yaml"
        path.write_text(changed(path.read_text(), {k.replace("__", "."): v for k, v in values.items()}, "test"))

    def restore(self) -> None:
        self.run("git", "checkout", "-q", ".")
        self.run("dvc", "checkout", "-q")

    @property
    def lock(self) -> dict[str, Any]:
        """dvc.lock by stage; equal texts give equal dicts, and dicts show which stage differs."""
        content: dict[str, Any] = YAML(typ="safe").load(self.folder / "dvc.lock")["stages"]
        return content

    def runs(self, query: str) -> list[Run]:
        """MLflow's runs, oldest first."""
        client = MlflowClient(f"sqlite:///{self.folder}/mlflow.db")
        (experiment,) = (e for e in client.search_experiments() if e.name == "wordmill")
        found = client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time ASC"])
        return list(found)

    def newest_rebuild(self) -> tuple[dict[str, str], set[str]]:
        """Of the newest parent run: the runs it links by stage, and the stages that are its own children."""
        parent = self.runs("tags.`wordmill.kind` = 'rebuild'")[-1]
        assert parent.info.status == "FINISHED"
        tags = parent.data.tags
        links = {name.removeprefix("stage."): tags[name] for name in tags if name.startswith("stage.")}
        children = self.runs(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        assert {run.info.status for run in children} == {"FINISHED"}
        assert len(children) == len({run.info.run_name for run in children})
        return links, {str(run.info.run_name) for run in children}


def ran(log: str) -> set[str]:
    prefix = "Running stage '"
    return {line[len(prefix) :].partition("'")[0] for line in log.splitlines() if line.startswith(prefix)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The pipeline, built once and committed."""
    folder = tmp_path_factory.mktemp("pipeline") / "checkout"
    for name in ("llm", "stages", "pipeline", "presets"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "data/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / name, folder / name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "WORDMILL_", "GIT_", "DVC_"))}
    environment |= {
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **{f"GIT_{who}_NAME": "t" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "t@example.org" for who in ("AUTHOR", "COMMITTER")},
    }
    checkout = Checkout(folder, environment)
    (folder / "params.yaml").write_bytes((REPO / "presets/default.yaml").read_bytes())
    checkout.put(**{name.replace(".", "__"): value for name, value in TINY.items()})
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "."], ["git", "commit", "-qm", "one"]):
        checkout.run(*command)
    assert checkout.repro() == STAGES
    checkout.run("git", "add", ".")
    checkout.run("git", "commit", "-qm", "built")
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
    assert not any(path.is_dir() and any(path.iterdir()) for path in (built.folder / "runs").iterdir())


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
    checkpoints = built.folder / "runs/pretrain"
    process = subprocess.Popen(
        ["dvc", "repro", "-f", "-s", "pretrain"],
        cwd=built.folder,
        env=built.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not any(checkpoints.glob("*/step-*")):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "waited too long for a checkpoint"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert any(checkpoints.glob("*/step-*")), "it ended before it was killed"
    assert not (built.folder / "models/base").exists()

    lock = (built.folder / "dvc.lock").read_bytes()
    before = built.lock
    log = built.run("dvc", "repro", "-f")
    assert ran(log) == STAGES
    assert "resuming after step" in log
    assert built.lock == before
    assert (built.folder / "dvc.lock").read_bytes() == lock
    assert built.run("git", "status", "--short") == ""
    runs = built.runs("tags.`wordmill.stage` = 'pretrain'")  # the killed one may have come to its end before its run
    assert runs[-1].info.status == "FINISHED"
    assert runs[-1].data.metrics["val_loss"] == runs[0].data.metrics["val_loss"]
    assert built.runs("attributes.status = 'RUNNING'") == []


def test_experiments_metrics_and_plots(built: Checkout) -> None:
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
