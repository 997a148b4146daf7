"""What a deployed rebuild knows of the agent that runs it: `wordmill agent`, a Prefect worker in a checkout.

Prefect starts a flow's process in an empty folder, lets it outlive a worker that is killed, and would show it as
running for ever if it were killed as well. So the agent says in the environment where its checkout is and which
process it is; a flow works there, and stops when that process is no more. A run that was claimed and has not begun is
given back when the agent stops or starts again. The automations that `wordmill deploy` makes cover the rest.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from uuid import UUID

import psutil

from llm.errors import WordmillError
from stages import processes

CHECKOUT = "WORDMILL_CHECKOUT"
AGENT = "WORDMILL_AGENT"
API = "http://127.0.0.1:4200/api"
PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # Of the server that `wordmill run` starts for itself: the first time it makes its database, which took over 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
}
CLAIMS = Path("runs/agent")  # a file for each worker: the ids of the runs that it has claimed
STOP_SECONDS = 25.0  # for flows to stop
GIVEN_BACK = "its agent stopped before it began"
HEARTBEAT_SECONDS = "30"  # the most often that Prefect takes


class AgentGoneError(Exception):
    """The agent that started this rebuild is no more."""


def settings() -> dict[str, str]:
    """The environment of everything that talks to Prefect: this machine's server if none is named, no reports home."""
    return {"PREFECT_API_URL": API, **PREFECT_DEFAULTS, **os.environ}


def run(pool: str) -> int:
    """Run a Prefect worker for `pool` until it ends, or SIGTERM or Ctrl-C comes; its exit status, 0 after those.

    Prefect's worker would wait for its flows then, for hours perhaps; here they are told to stop.
    """
    folder = Path.cwd()
    if not (folder / "dvc.yaml").exists():
        raise WordmillError(f"{folder}: no dvc.yaml; start the agent in the repository root")
    environment = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": HEARTBEAT_SECONDS,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        **settings(),
        CHECKOUT: str(folder),
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    give_back()
    command = [sys.executable, "-m", "pipeline.agent", str(os.getpid()), pool]
    stopping = threading.Event()
    with subprocess.Popen(command, env=environment, start_new_session=True) as worker:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: stopping.set())
        while worker.poll() is None:
            if stopping.wait(0.2):
                _stop(worker)
                return 0
        return worker.returncode


def _stop(worker: subprocess.Popen[bytes]) -> None:
    # A worker that is asked to end kills its flows before they can tell the server; one that stands still starts none.
    worker.send_signal(signal.SIGSTOP)
    flows = psutil.Process(worker.pid).children()
    print(f"agent: stops{f', and {len(flows)} rebuild(s) with it' if flows else ''}", flush=True)
    for flow in flows:
        with contextlib.suppress(psutil.NoSuchProcess):
            flow.terminate()
    end = time.monotonic() + STOP_SECONDS
    while any(_is_alive(flow) for flow in flows) and time.monotonic() < end:
        time.sleep(0.1)
    for flow in flows:
        with contextlib.suppress(psutil.NoSuchProcess):
            flow.kill()
    worker.kill()
    worker.wait()
    give_back()


def give_back() -> None:
    """Schedule the runs again that a worker of this checkout claimed and that have not begun; its process is no more.

    Prefect leaves such a run Pending for ever, and a pool or deployment with a limit then starts no other.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Scheduled

    for path in CLAIMS.glob("*.claims"):
        pid, _, started = path.stem.partition("-")
        if processes.started(int(pid)) == started:
            continue
        with get_client(sync_client=True) as client:
            for run_id in path.read_text(encoding="utf-8").split():
                with contextlib.suppress(ObjectNotFound):
                    run = client.read_flow_run(UUID(run_id))
                    if run.state and run.state.is_pending():
                        client.set_flow_run_state(run.id, Scheduled(message=GIVEN_BACK), force=True)
                        print(f"agent: {run.name} had not begun and is scheduled again", flush=True)
        path.unlink()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _be_worker(parent: int, pool: str) -> None:
    """What the worker's process does: tie its life to the agent's, then be Prefect's worker."""
    processes.die_with_parent(signal.SIGKILL, parent)
    started = processes.started(os.getpid())
    os.environ[AGENT] = f"{os.getpid()} {started}"
    from pipeline import worker

    CLAIMS.mkdir(parents=True, exist_ok=True)
    worker.main(pool, CLAIMS / f"{os.getpid()}-{started}.claims")


def wait_for_server(seconds: float = 60) -> None:
    """Until the server answers. Raises WordmillError."""
    url = settings()["PREFECT_API_URL"]
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (OSError, ValueError) as error:
            if time.monotonic() > end:
                raise WordmillError(f"PREFECT_API_URL: {url}: no server answers ({error}); `make server`") from None
        time.sleep(0.5)


def enter_checkout() -> None:
    """In a deployed flow: go to the agent's checkout. Raises WordmillError if an agent did not start it."""
    from prefect.runtime import deployment

    if folder := os.environ.get(CHECKOUT):
        os.chdir(folder)
    elif deployment.id:
        raise WordmillError("the worker does not say where its checkout is; start it with `wordmill agent`")


def check() -> None:
    """Raises AgentGoneError in a flow whose agent has ended."""
    if told := os.environ.get(AGENT):
        pid, _, started = told.partition(" ")
        if processes.started(int(pid)) != started:
            raise AgentGoneError("its agent was killed; the next rebuild goes on where it stopped")


if __name__ == "__main__":
    _be_worker(int(sys.argv[1]), sys.argv[2])
