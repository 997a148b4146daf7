"""Kill every stage at random moments, go on as `make repro` does, and compare every byte with an undisturbed run's.

    python -m benchmarks.kill [--kills 100] [--seed 1] [--folder FOLDER] [--keep-store]

A copy of this checkout with a tiny model is built once. Then the ten stages take turns. DVC is made to forget a stage
(its entry in dvc.lock and the run cache), `dvc repro` begins it again, and the whole group of processes, DVC and what
delivers to MLflow included, gets SIGKILL after a time drawn evenly from what the stage and DVC's record of it take.
That happens three times, half of them for a training counted from its first checkpoint, before `wordmill check` and
`dvc repro` may finish the work. Then dvc.lock must say what it said, and every file of data, models and reports must be
as it was. Where the last kill left a checkpoint, the run must have gone on from it. Before every fourth turn MLflow's
database is taken away, so that kills meet its making too (`--keep-store` leaves it).

No hand is needed in between: what a kill cuts, the commands themselves repair. Prints a line a turn, and the count of
kills by stage; exit status 1 if a byte differs, a command fails, or a checkpoint was passed over.
"""

import argparse
import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from pipeline.presets import changed
from stages.store import client

if TYPE_CHECKING:
    from mlflow.entities import Run
from stages.scratch import FINISHED

REPO = Path(__file__).parents[1]
LONGER = {"pretrain.steps": 400, "dpo.epochs": 12}  # than the tests': some seconds of training
TRAINING = 2.0  # seconds: less than it takes from the first checkpoint on
AT_ONCE = 3  # kills of a stage before it may finish
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

    def runs(self, query: str) -> "list[Run]":
        """MLflow's runs, oldest first."""
        mlflow = client(f"sqlite:///{self.folder}/mlflow.db")
        (experiment,) = (e for e in mlflow.search_experiments() if e.name == "wordmill")
        found = mlflow.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time ASC"])
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


def build(folder: Path, changes: Mapping[str, Any] | None = None) -> Checkout:
    """A copy of this checkout at `folder` with a tiny model, and `changes` to its params, built and committed."""
    for name in ("llm", "stages", "pipeline", "presets"):
        shutil.copytree(REPO / name, folder / name)  # what is compiled too: numba takes seconds for it
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "data/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / name, folder / name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "WORDMILL_", "GIT_", "DVC_"))}
    environment |= {
        "DVC_NO_ANALYTICS": "1",
        "WORDMILL_LOCKS": str(folder.parent / "locks"),  # what else trains on this machine is not waited for
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **{f"GIT_{who}_NAME": "t" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "t@example.org" for who in ("AUTHOR", "COMMITTER")},
    }
    checkout = Checkout(folder, environment)
    (folder / "params.yaml").write_bytes((REPO / "presets/default.yaml").read_bytes())
    checkout.put(**{name.replace(".", "__"): value for name, value in {**TINY, **(changes or {})}.items()})
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "."], ["git", "commit", "-qm", "one"]):
        checkout.run(*command)
    checkout.repro()
    checkout.run("git", "add", ".")
    checkout.run("git", "commit", "-qm", "built")
    return checkout


def kill(checkout: Checkout, stage: str, seconds: float, trained: bool, signum: int) -> bool:
    """Run `stage` and send all of its group a signal after so many seconds; whether it was still going.

    `trained` counts them from the first checkpoint.
    """
    process = subprocess.Popen(
        ["dvc", "repro", "-s", stage],
        cwd=checkout.folder,
        env=checkout.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while trained and process.poll() is None and not checkpointed(checkout, stage):
            time.sleep(0.01)
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signum)
        return True
    finally:
        process.wait()


@dataclass(frozen=True)
class Outcome:
    """Of a kill and the `dvc repro` after it."""

    killed: int  # how often it was still going
    left: bool  # there was a checkpoint when it died last; none before the first, and after the stage's own end
    resumed: bool
    same: bool  # every byte of data, models and reports, and dvc.lock


def survives(
    checkout: Checkout,
    stage: str,
    seconds: float,
    trained: bool = False,
    signum: int = signal.SIGKILL,
    before: Sequence[float] = (),
) -> Outcome:
    """Kill `stage` as `kill` does, once for each time in `before` and then at `seconds`; then `dvc repro`."""
    expected = outputs(checkout), checkout.lock
    forget(checkout, stage)
    killed = 0
    for moment in (*before, seconds):
        killed += kill(checkout, stage, moment, trained, signum)
        check(checkout)
    left = checkpointed(checkout, stage)
    log = checkout.run("dvc", "repro")
    return Outcome(killed, left, "resuming after step" in log, (outputs(checkout), checkout.lock) == expected)


def check(checkout: Checkout) -> None:
    """What `make repro` does before `dvc repro`."""
    told = checkout.run("python", "-m", "pipeline.cli", "check").splitlines()
    for line in told[:-1]:
        print(f"  {line}", flush=True)


def checkpointed(checkout: Checkout, stage: str) -> bool:
    """Whether a run of the stage that has not finished has left a checkpoint."""
    found = checkout.folder.glob(f"runs/{stage}/*/step-*")
    return any(not (path.parent / FINISHED).exists() for path in found)


def forget(checkout: Checkout, stage: str) -> None:
    """Make DVC forget that it ever ran `stage`."""
    path = checkout.folder / "dvc.lock"
    yaml = YAML()
    content = yaml.load(path)
    del content["stages"][stage]
    yaml.dump(content, path)
    shutil.rmtree(checkout.folder / ".dvc/cache/runs", ignore_errors=True)


def outputs(checkout: Checkout) -> dict[str, str]:
    """SHA-256 of data, models and reports, by path."""
    roots = [checkout.folder / name for name in ("data", "models", "reports")]
    paths = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(checkout.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to build; a temporary folder if not given")
    parser.add_argument("--keep-store", action="store_true", help="leave MLflow's database where it is")
    options = parser.parse_args()
    drawn = random.Random(options.seed)
    kills: Counter[str] = Counter()
    resumed = 0
    with tempfile.TemporaryDirectory() as temporary:
        checkout = build((options.folder or Path(temporary)) / "checkout", LONGER)
        lengths = {stage: measured(checkout, stage) for stage in checkout.lock}
        for turn, stage in enumerate(itertools.cycle(lengths)):
            if kills.total() >= options.kills:
                break
            if turn % 4 == 3 and not options.keep_store:
                remove_store(checkout)
            trained = stage in ("pretrain", "dpo") and drawn.random() < 0.5
            moments = [drawn.uniform(0, TRAINING if trained else lengths[stage]) for _ in range(AT_ONCE)]
            outcome = survives(checkout, stage, moments[-1], trained, before=moments[:-1])
            when = ", ".join(f"{moment:.2f}" for moment in moments) + " s" + (" of training" if trained else "")
            if not outcome.same or (outcome.left and not outcome.resumed):
                what = "a checkpoint was PASSED OVER" if outcome.same else "the bytes DIFFER"
                print(f"{stage} killed after {when}: {what} ({outcome})", flush=True)
                return 1
            kills[stage] += outcome.killed
            resumed += outcome.resumed
            how = "resumed from a checkpoint" if outcome.resumed else "had left no checkpoint"
            print(
                f"{kills.total()}: {stage} killed {outcome.killed} times, after {when}, {how}: the same bytes",
                flush=True,
            )
        by_stage = ", ".join(f"{stage} {count}" for stage, count in kills.items())
        print(
            f"{kills.total()} kills, every byte the same after each; {resumed} resumed from a checkpoint ({by_stage})"
        )
    return 0


def measured(checkout: Checkout, stage: str) -> float:
    """Seconds that `dvc repro` takes for a stage."""
    forget(checkout, stage)
    began = time.monotonic()
    checkout.run("dvc", "repro", "-s", stage)
    return time.monotonic() - began


def remove_store(checkout: Checkout) -> None:
    for path in checkout.folder.glob("mlflow.db*"):
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
