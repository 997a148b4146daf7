"""The drill: deployed rebuilds cancelled, stopped and killed in mid-training, and what `wordmill run` costs by itself.

    python -m benchmarks.orchestration [--folder FOLDER] [--only drill|cost]

A copy of this checkout with a tiny model is built and committed, with a Prefect server and an agent of its own on
loopback. `pretrain` is then forced to run by `rebuild/manual` and ended once it has left a checkpoint: by Prefect's
cancelling, by SIGTERM to the agent, by SIGKILL to the worker, and by SIGKILL to worker and flow together, which leaves
nobody who could tell the server. Each time it counts the seconds until no process is left; then the next run must go on
from the checkpoint and end with the committed bytes: a rebuild that differs from its commit in anything is saved as an
experiment, one that does not is not. Two rebuilds of one checkout at once, and a training by hand beside a deployed
one, follow. Prints a line each; exit status 1 if anything is not as it should be.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.kill import LONGER, Checkout, build
from benchmarks.prefect_server import (
    UNFINISHED,
    ask,
    begin,
    cancel,
    logs,
    program,
    rebuilding,
    server,
    state,
    until,
    worker,
)

WORDMILL = [sys.executable, "-m", "pipeline.cli"]
PRETRAIN = {"force": True, "from_stage": "pretrain", "until_stage": "pretrain"}


class Drill:
    """A built checkout, a server, and an agent that may be replaced."""

    def __init__(self, checkout: Checkout, environment: Mapping[str, str]) -> None:
        self.checkout = checkout
        self.folder = checkout.folder
        self.environment = environment

    @contextlib.contextmanager
    def agent(self) -> Iterator[subprocess.Popen[bytes]]:
        log = self.folder / "runs/agent.log"
        with program([*WORDMILL, "agent"], self.folder, self.environment, log) as process:
            yield process

    def training(self) -> str:
        """A deployed run that trains and has left a checkpoint; its id."""
        run_id = begin(self.environment, "rebuild/manual", PRETRAIN)
        until(lambda: any(self.folder.glob("runs/shared/pretrain/*/step-*")))
        return run_id

    def ended(self, end: Callable[[], object]) -> float:
        """Seconds from `end` until no process of a rebuild is left."""
        end()
        seconds = until(lambda: not rebuilding(self.folder), 60)
        left = list(self.folder.glob("runs/shared/pretrain/*/step-*"))
        assert left, "no checkpoint is left"
        return seconds

    def told(self, run_id: str) -> str:
        """The final state that the flow itself, which is no more, has told the server."""
        found = state(self.environment, run_id)
        assert found["type"] not in UNFINISHED, found
        return f"{found['name']} ({found['message']})"

    def resumed(self) -> None:
        """The next run goes on from the checkpoint and gives the committed bytes."""
        run_id = begin(self.environment, "rebuild/manual", PRETRAIN)
        until(lambda: state(self.environment, run_id)["type"] not in UNFINISHED)
        end = state(self.environment, run_id)
        assert end["message"] == "stages: 1 completed", end
        lines: list[str] = []
        until(lambda: _ended(lines, logs(self.environment, run_id)), 20)
        assert any("resuming after step" in line for line in lines), lines
        (page,) = ask(
            self.environment,
            "/artifacts/filter",
            {"artifacts": {"flow_run_id": {"any_": [run_id]}, "type": {"any_": ["markdown"]}}},
        )
        assert "[The run in MLflow](" in page["data"], page["data"]
        assert not list(self.folder.glob("runs/shared/pretrain/*")), "state is left over"
        assert not list((self.folder / "runs/worktrees").iterdir()), "a worktree is left over"
        assert self.checkout.run("git", "status", "--porcelain") == ""


def _ended(lines: list[str], found: list[dict[str, str]]) -> bool:
    lines[:] = [log["message"] for log in found]
    return any("Finished in state" in log["message"] for log in found if log["task_run_id"] is None)


def drill(to: Drill) -> None:
    with to.agent():
        run_id = to.training()
        seconds = to.ended(lambda: cancel(to.environment, run_id))
        cancelled = until(lambda: state(to.environment, run_id)["type"] == "CANCELLED")
        to.resumed()
        print(f"cancelled: nothing runs after {seconds:.1f} s, Cancelled {cancelled:.1f} s later; resumed, same bytes")
    with to.agent() as process:
        run_id = to.training()
        seconds = to.ended(process.terminate)
        name = to.told(run_id)
    with to.agent():
        to.resumed()
        print(f"agent, SIGTERM: nothing runs after {seconds:.1f} s, {name}; resumed, same bytes")
        run_id = to.training()
        seconds = to.ended(lambda: worker(to.folder).kill())
        name = to.told(run_id)
    with to.agent():
        to.resumed()
        print(f"worker, SIGKILL: nothing runs after {seconds:.1f} s, {name}; resumed, same bytes")
        run_id = to.training()
        seconds = to.ended(lambda: _kill_all(to.folder))
        assert state(to.environment, run_id)["type"] == "RUNNING"
    with to.agent():
        crashed = until(lambda: state(to.environment, run_id)["type"] == "CRASHED", 240)
        to.resumed()
        print(
            f"worker and flow, SIGKILL: nothing runs after {seconds:.1f} s, Crashed {crashed:.0f} s later; "
            "resumed, same bytes"
        )
        beside(to)
    at_once(to)


def _kill_all(folder: Path) -> None:
    worker(folder).kill()
    for process in rebuilding(folder):
        if "pipeline.engine" in process.cmdline():
            process.kill()


def beside(to: Drill) -> None:
    """A training by hand while a deployed one has the device."""
    lock = to.checkout.lock
    run_id = to.training()
    log = to.checkout.run("dvc", "repro", "-f", "-s", "pretrain")
    (line,) = (line for line in log.splitlines() if "waits for cpu" in line)
    until(lambda: state(to.environment, run_id)["type"] not in UNFINISHED)
    assert state(to.environment, run_id)["type"] == "COMPLETED"
    assert to.checkout.lock == lock
    print(f"a training by hand beside it: {line.partition(' in ')[0]} …; then both ended with the same bytes")


def at_once(to: Drill) -> None:
    """Two rebuilds of one checkout."""
    lock = to.checkout.lock
    command = [*WORDMILL, "run", "--force", "--from", "pretrain", "--until", "dpo"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=to.folder, env=to.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    first = start()
    until(lambda: bool(rebuilding(to.folder)))
    second = start()
    _, said = second.communicate(timeout=120)
    assert second.returncode == 2, said
    first.communicate(timeout=120)
    assert first.returncode == 0
    assert to.checkout.lock == lock
    assert to.checkout.run("dvc", "status").strip() == "Data and pipelines are up to date."
    print(f"two `wordmill run` at once: the second ends with 2, {said.strip()!r}; the first with the same bytes")


def cost(to: Drill, rounds: int) -> None:
    """Seconds of a rebuild in which nothing is to do."""
    without = {name: value for name, value in to.environment.items() if name != "PREFECT_API_URL"}
    ways = {
        "dvc repro": (["dvc", "repro"], without),
        "wordmill run, with a server": ([*WORDMILL, "run"], dict(to.environment)),
        "wordmill run, without": ([*WORDMILL, "run"], without),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, (command, environment) in ways.items():
            began = time.monotonic()
            subprocess.run(command, cwd=to.folder, env=environment, check=True, capture_output=True)
            seconds[name].append(time.monotonic() - began)
    for name, taken in seconds.items():
        kept = taken[1:]  # the first one makes caches and databases
        print(f"{name}: {statistics.median(kept):.2f} s ({min(kept):.2f} to {max(kept):.2f})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="where to build; a temporary folder if not given")
    parser.add_argument("--only", choices=["drill", "cost"])
    parser.add_argument("--rounds", type=int, default=5, help="of the cost")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = options.folder or Path(temporary)
        checkout = build(place / "checkout", LONGER)
        shutil.copy(Path(__file__).parents[1] / "prefect.yaml", checkout.folder)
        (place / "home").mkdir()
        with server(place / "home", {**os.environ, **checkout.environment}) as environment:
            to = Drill(checkout, environment)
            subprocess.run([*WORDMILL, "deploy"], cwd=to.folder, env=environment, check=True)
            (checkout.folder / "prefect.yaml").unlink()
            if options.only != "drill":
                cost(to, options.rounds)
            if options.only != "cost":
                drill(to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
