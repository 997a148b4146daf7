"""The deployments on a real Prefect server and worker, on loopback: what runs, what is cached, what is refused."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(sys.executable).parent
STAGES = {"corpus", "pretrain", "preferences", "samples"}


@contextlib.contextmanager
def agent(
    command: list[str], folder: Path, environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own; nothing of it is left afterwards."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, quiet: dict[str, str]) -> Iterator[dict[str, str]]:
    """A server of its own; the environment in which everything talks to it."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    environment = {
        **quiet,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
    }
    command = [str(PROGRAMS / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with agent(command, home, environment, home / "server.log") as process:

        def healthy() -> bool:
            assert process.poll() is None, (home / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=1) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        until(healthy)
        yield environment


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, server: dict[str, str], make_checkout: Callable[[Path], Path]
) -> Iterator[Path]:
    """A checkout whose deployments are on the server, with a worker that runs them."""
    folder = make_checkout(tmp_path_factory.mktemp("deployed") / "checkout")

    def prefect(*arguments: str) -> None:
        subprocess.run([PROGRAMS / "prefect", *arguments], cwd=folder, env=server, check=True, capture_output=True)

    prefect("work-pool", "create", "gpu", "--type", "process")
    prefect("--no-prompt", "deploy", "--all")
    # A worker is not started in the checkout: the folder comes from the deployment.
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = [str(PROGRAMS / "prefect"), "worker", "start", "--pool", "gpu"]
    with agent(command, elsewhere, server, elsewhere / "worker.log"):
        yield folder


def deployed(server: dict[str, str], name: str, **parameters: Any) -> tuple[Any, dict[str, Any], list[str]]:
    """Start a deployment and wait for its end: the final state, the tasks' states by name, the log."""
    program = """
import json, sys, time
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
name, parameters = sys.argv[1], json.loads(sys.argv[2])
try:
    run = run_deployment(name, parameters=parameters, timeout=180, poll_interval=0.3)
except PrefectHTTPStatusError as error:
    print(json.dumps(["refused", error.response.text, {}, []]))
    sys.exit()
with get_client(sync_client=True) as client:
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    deadline = time.monotonic() + 20  # the last lines are delivered after the last state
    while True:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), limit=200)
        # the flow's own last line, not a task's
        ended = any("Finished in state" in log.message for log in logs if log.task_run_id is None)
        if ended or time.monotonic() > deadline:
            break
        time.sleep(0.2)
states = {task.name: [task.state.name, task.state.type.value] for task in tasks}
print(json.dumps([run.state.name, run.state.message, states, [log.message for log in logs]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, name, json.dumps(parameters)],
        env=server,
        check=True,
        capture_output=True,
        text=True,
    )
    state, message, tasks, logs = json.loads(done.stdout.splitlines()[-1])
    return (state, message), tasks, logs


def ran(folder: Path) -> list[str]:
    """The stages that ran since this was last asked."""
    log = folder / "ran.log"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def test_first_all_then_none_then_what_an_override_touches(server: dict[str, str], folder: Path) -> None:
    (state, _), tasks, logs = deployed(server, "rebuild/manual")
    assert state == "Completed", logs
    assert {name: name_ for name, (name_, _) in tasks.items()} == dict.fromkeys(STAGES, "Completed")
    order = ran(folder)
    assert (order[0], order[-1], set(order)) == ("corpus", "samples", STAGES)
    assert "made samples" in logs  # a stage's output is in the run's log

    (state, message), tasks, _ = deployed(server, "rebuild/nightly")
    assert (state, message) == ("Completed", "stages: 4 cached")
    assert tasks == {stage: ["Cached", "COMPLETED"] for stage in STAGES}
    assert ran(folder) == []

    (state, _), tasks, _ = deployed(server, "rebuild/manual", overrides={"preferences.pairs": 20, "samples.top_k": 3})
    assert state == "Completed"
    assert {name: state for name, (state, _) in tasks.items()} == {
        "corpus": "Cached",
        "pretrain": "Cached",
        "preferences": "Completed",
        "samples": "Completed",
    }
    assert ran(folder) == ["preferences", "samples"]
    assert (folder / "params.yaml").read_bytes() == (folder / "presets/default.yaml").read_bytes()
    assert "('pairs', 20)" in (folder / "preferences.out").read_text()


def test_wrong_parameters_are_refused(server: dict[str, str], folder: Path) -> None:
    (state, message), _, _ = deployed(server, "rebuild/manual", force="perhaps")
    assert state == "refused"
    assert "'perhaps' is not of type 'boolean'" in message
    (state, _), _, _ = deployed(server, "rebuild/manual", overrides=[1])
    assert state == "refused"

    (state, message), tasks, _ = deployed(server, "rebuild/manual", overrides={"samples.temperature": "hot"})
    assert (state, tasks) == ("Failed", {})
    assert message.startswith("overrides: samples.temperature: input should be a valid number")


def wordmill(folder: Path, server: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=server, capture_output=True, text=True, timeout=60)


def test_wordmill_run_tells_the_stage_that_failed(
    server: dict[str, str], tmp_path: Path, make_checkout: Callable[[Path], Path]
) -> None:
    folder = make_checkout(tmp_path / "checkout")
    done = wordmill(folder, server, "run", "--set", "samples.top_k=13")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "wordmill: samples: top_k: 13 is bad luck; use 12"
    assert "Traceback" not in done.stderr
    assert set(ran(folder)) == STAGES - {"samples"}
    assert (folder / "params.yaml").read_bytes() == (folder / "presets/default.yaml").read_bytes()
