"""Several processes for one stage: it starts torchrun, hears what the first of them tells, and they end with it.

The stage itself does not train: it holds the lock, talks to MLflow, takes the signals and waits. What passes between it
and the processes lies in its scratch folder: `job.json` (the params as the stage read them, so that a later edit
reaches nobody), `told` (a line of JSON for each record), `stop` (the stage's wish, seen at the end of a step),
`refused-N` (process N's one line on a user's mistake), `failure.json` (who died of what) and `torchrun.log`. Files do
that on one machine, and in the shared folder of several.

None of them outlives the stage: the kernel kills torchrun when the stage dies, and the processes when torchrun does.
When one process dies, torchrun stops the others at once.

Over several machines (docs/parallel.md) the stage runs on one, with WORDMILL_NODES and WORDMILL_RENDEZVOUS set since
hosts are no matter of params.yaml; on each of the others, with the same set:

    python -m stages.torchrun join pretrain
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm.devices import choose
from llm.errors import WordmillError
from llm.training_state import Record
from stages.device import TAKEN, hold
from stages.machines import nodes as nodes
from stages.processes import die_with_parent
from stages.stage import RUNS, disk_problem

POLL_SECONDS = 0.1
STOP_SECONDS = 10.0  # that torchrun has to stop its processes before it is killed
LAST_LINES = 30  # of torchrun's log, shown when it failed by no known cause
LAUNCHER = "WORDMILL_LAUNCHER"  # process id of the one that a process must not outlive


def launched(
    module: str, job: Mapping[str, Any], processes: int, scratch: Path, stopping: Callable[[], bool]
) -> Iterator[Record]:
    """The records that `python -m MODULE process SCRATCH`, started `processes` times, tells. Raises WordmillError."""
    told, stop, log = scratch / "told", scratch / "stop", scratch / "torchrun.log"
    for old in (stop, scratch / "failure.json", *scratch.glob("refused-*")):
        old.unlink(missing_ok=True)
    told.write_text("")
    if (
        scratch.parent.parent == RUNS and not scratch.parent.is_symlink()
    ):  # of stopped runs, which `join` must not take for this one
        for old in scratch.parent.glob("*/job.json"):
            old.unlink(missing_ok=True)
    (scratch / "job.json").write_text(json.dumps({"module": module, "processes": processes, "params": dict(job)}))
    with log.open("wb") as errors:
        torchrun = subprocess.Popen(
            [sys.executable, "-m", "stages.torchrun", "run", str(scratch)],
            env=_environment(nodes(processes)),
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the stage
        )
    rest = ""
    try:
        with told.open() as lines:
            ended = False
            while not ended:
                ended = torchrun.poll() is not None
                *whole, rest = (rest + lines.read()).split("\n")
                for line in whole:
                    yield Record(**json.loads(line))
                if stopping():
                    stop.touch()
                if not ended:
                    time.sleep(POLL_SECONDS)
    finally:
        torchrun.terminate()
        try:
            torchrun.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            torchrun.kill()  # and the kernel its processes
            torchrun.wait()
    if torchrun.returncode:
        raise _explained(scratch, torchrun.returncode)


def _environment(machines: int) -> dict[str, str]:
    """Torchrun's and its processes': they import what the stage does, and stay on the loopback of one machine."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    # Each process sets its own number of threads; without the variable torchrun would warn of its own choice.
    given = {"OMP_NUM_THREADS": "1", **({} if machines > 1 else loopback), **os.environ}
    return {**given, "PYTHONPATH": path, LAUNCHER: str(os.getpid())}


def _explained(scratch: Path, status: int) -> Exception:
    """Why torchrun failed: a user's mistake, a death from outside, or a bug with the end of the log."""
    refused = sorted(scratch.glob("refused-*"))
    if refused:
        return WordmillError(refused[0].read_text(encoding="utf-8"))
    failure = scratch / "failure.json"
    if failure.exists():
        found = json.loads(failure.read_text(encoding="utf-8"))
        if found["exitcode"] < 0:
            name = signal.Signals(-found["exitcode"]).name
            why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
            return WordmillError(
                f"process {found['rank']} was ended by {name}{why}; the others were stopped; "
                "`dvc repro` goes on from the last checkpoint"
            )
    log = scratch / "torchrun.log"
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:])
    return RuntimeError(f"torchrun ended with status {status}; the end of {log}:\n{tail}")


class Process:
    """One of those that torchrun started: what it is to do, and how it tells the stage."""

    def __init__(self, scratch: Path) -> None:
        die_with_parent(signal.SIGKILL, int(os.environ[LAUNCHER]))
        self.scratch = scratch
        self.params: dict[str, Any] = json.loads((scratch / "job.json").read_text())["params"]
        self.rank = int(os.environ["RANK"])
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self.on_this_machine = int(os.environ["LOCAL_WORLD_SIZE"])
        if self.rank:
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115, for good: the first one prints

    def stopping(self) -> bool:
        """The stage was told to stop."""
        return (self.scratch / "stop").exists()

    def tell(self, record: Record) -> None:
        """The first process's records are the stage's."""
        if self.rank == 0:
            with (self.scratch / "told").open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")

    def run(self, work: Callable[["Process"], None]) -> None:
        """Do `work`; a user's mistake is one line of the stage's, anything else a traceback in the log."""
        try:
            work(self)
        except Exception as error:
            problem = str(error) if isinstance(error, WordmillError) else disk_problem(error)
            if problem:
                refused = self.scratch / f"refused-{self.rank}"
                writing = refused.with_name(f".{refused.name}")
                writing.write_text(problem, encoding="utf-8")
                writing.rename(refused)
            raise


def _run(scratch: Path, machines: int) -> None:
    """Torchrun, with what killed it written down."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    job = json.loads((scratch / "job.json").read_text())
    os.environ[LAUNCHER] = str(os.getpid())
    if machines == 1:  # any free port, and no name that the network would have to know
        where = ["--standalone", "--local-addr=127.0.0.1"]
    else:
        where = ["--rdzv-backend=c10d", f"--rdzv-endpoint={os.environ['WORDMILL_RENDEZVOUS']}"]
        where += [f"--rdzv-id={scratch.name}", f"--nnodes={machines}"]
    try:
        each = job["processes"] // machines
        torchrun([*where, f"--nproc-per-node={each}", "-m", job["module"], "process", str(scratch)])
    except ChildFailedError as error:
        # Those that torchrun itself stopped are no cause, and those that lost a peer fail after it.
        codes = [(rank, failure.exitcode) for rank, failure in error.failures.items()]
        died = [(rank, code) for rank, code in codes if code < 0 and code != -signal.SIGTERM]
        rank, code = (died or [(rank, code) for rank, code in codes if code > 0] or codes)[0]
        (scratch / "failure.json").write_text(json.dumps({"rank": rank, "exitcode": code}))
        raise


def _join(stage: str) -> None:
    """On another machine than the stage's: wait for its job, and take part in it. Raises WordmillError."""
    if int(os.environ.get("WORDMILL_NODES", "1")) < 2:
        raise WordmillError("WORDMILL_NODES: set it as for the stage, to 2 machines or more")
    print(f"waiting for `{stage}` to begin in {Path.cwd()}", flush=True)
    while not (jobs := list((RUNS / stage).glob("*/job.json"))):
        time.sleep(POLL_SECONDS)
    job = max(jobs, key=lambda path: path.stat().st_mtime)  # others are of runs that were stopped
    told = json.loads(job.read_text())
    machines = nodes(told["processes"])
    device, _ = choose(told["params"]["compute"]["device"])
    if device.type == "cuda":  # this machine's GPUs have locks of their own
        taken = hold(f"{stage}, joined", device, told["processes"] // machines)
        os.environ[TAKEN] = ",".join(str(each.index) for each in taken)
    os.environ.update(_environment(machines))
    _run(job.parent, int(os.environ["WORDMILL_NODES"]))


if __name__ == "__main__":
    try:
        if sys.argv[1] == "join":
            _join(sys.argv[2])
        else:
            die_with_parent(signal.SIGKILL, int(os.environ[LAUNCHER]))
            _run(Path(sys.argv[2]), int(os.environ.get("WORDMILL_NODES", "1")))
    except WordmillError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
