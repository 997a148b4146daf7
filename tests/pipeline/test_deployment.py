"""The deployments on a real Prefect server and worker, on loopback: what runs, what is cached, what is refused."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
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
        "WORDMILL_LOCKS": str(home / "locks"),
        "RAN_LOG": str(home / "ran.log"),
        **{f"GIT_{who}_NAME": "t" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "t@example.org" for who in ("AUTHOR", "COMMITTER")},
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
    """A checkout whose deployments are on the server, with an agent that runs them."""
    folder = make_checkout(tmp_path_factory.mktemp("deployed") / "checkout")
    for command in (["git", "add", "."], ["git", "commit", "-qm", "one"]):
        subprocess.run(command, cwd=folder, env=server, check=True)
    wordmill(folder, server, "deploy").check_returncode()
    with agent([sys.executable, "-m", "pipeline.cli", "agent"], folder, server, folder / "runs.log"):
        yield folder


@dataclass(frozen=True)
class Run:
    """What a deployment's run came to."""

    state: str
    message: str
    tasks: dict[str, list[str]]  # name and type of the final state, by stage
    logs: list[str]
    page: str
    name: str


def ask(server: dict[str, str], path: str, content: Any = None) -> Any:
    """What the server's API answers; with `content`, to a POST."""
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(server["PREFECT_API_URL"] + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def begin(server: dict[str, str], name: str, parameters: dict[str, Any]) -> str:
    """Start a deployment; its run's id."""
    deployment = ask(server, f"/deployments/name/{name}")
    content = {"parameters": deployment["parameters"] | parameters, "state": {"type": "SCHEDULED"}}
    return str(ask(server, f"/deployments/{deployment['id']}/create_flow_run", content)["id"])


def deployed(server: dict[str, str], name: str, **parameters: Any) -> Run:
    """Start a deployment and wait for its end."""
    try:
        run_id = begin(server, name, parameters)
    except urllib.error.HTTPError as error:
        return Run("refused", error.read().decode(), {}, [], "", "")
    this = {"flow_runs": {"id": {"any_": [run_id]}}}
    logs: list[dict[str, Any]] = []

    def ended() -> bool:
        nonlocal logs
        if ask(server, f"/flow_runs/{run_id}")["state_type"] in ("SCHEDULED", "PENDING", "RUNNING"):
            return False
        logs = ask(server, "/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200})
        # the last lines are delivered after the last state; the flow's own, not a task's
        return any("Finished in state" in log["message"] for log in logs if log["task_run_id"] is None)

    until(ended)
    run = ask(server, f"/flow_runs/{run_id}")
    tasks = ask(server, "/task_runs/filter", this)
    pages = ask(server, "/artifacts/filter", this | {"artifacts": {"type": {"any_": ["markdown"]}}})
    return Run(
        run["state"]["name"],
        run["state"]["message"],
        {task["name"]: [task["state"]["name"], task["state"]["type"]] for task in tasks},
        [log["message"] for log in logs],
        pages[0]["data"] if pages else "",
        run["name"],
    )


def ran(server: dict[str, str]) -> list[str]:
    """The stages that ran since this was last asked."""
    log = Path(server["RAN_LOG"])
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def row(page: str, figure: str) -> list[str]:
    """The cells of a page's table after the first."""
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {figure} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_first_all_then_none_then_what_an_override_touches(server: dict[str, str], folder: Path) -> None:
    (folder / "params.yaml").write_text("an edit that no deployed run may see\n")
    run = deployed(server, "rebuild/manual")
    assert run.state == "Completed", run.logs
    assert {name: state for name, (state, _) in run.tasks.items()} == dict.fromkeys(STAGES, "Completed")
    order = ran(server)
    assert (order[0], order[-1], set(order)) == ("corpus", "samples", STAGES)
    assert "made samples" in run.logs  # a stage's output is in the run's log
    assert row(run.page, "samples/temperature") == ["0.5", "", ""]
    assert "Once there was" in run.page

    run = deployed(server, "rebuild/nightly")
    assert run.state == "Completed"
    assert run.message.startswith("stages: 4 cached")
    assert run.tasks == {stage: ["Cached", "COMPLETED"] for stage in STAGES}
    assert row(run.page, "corpus")[0].startswith("Cached: ")
    assert ran(server) == []

    run = deployed(server, "rebuild/manual", overrides={"preferences.pairs": 20, "samples.top_k": 3})
    assert run.state == "Completed"
    assert {name: state for name, (state, _) in run.tasks.items()} == {
        "corpus": "Cached",
        "pretrain": "Cached",
        "preferences": "Completed",
        "samples": "Completed",
    }
    assert ran(server) == ["preferences", "samples"]
    assert row(run.page, "samples/top_k") == ["3", "0", "+3"]

    # The checkout and its edit are as they were; what was made comes back from the shared cache by its name.
    assert (folder / "params.yaml").read_text() == "an edit that no deployed run may see\n"
    assert not list((folder / "runs/worktrees").iterdir())
    assert not (folder / "preferences.out").exists()
    (folder / "params.yaml").write_bytes((folder / "presets/default.yaml").read_bytes())
    subprocess.run(
        ["dvc", "exp", "apply", f"manual-{run.name}"], cwd=folder, env=server, check=True, capture_output=True
    )
    assert "('pairs', 20)" in (folder / "preferences.out").read_text()
    subprocess.run(["git", "checkout", "-q", "."], cwd=folder, check=True)


def test_wrong_parameters_are_refused(server: dict[str, str], folder: Path) -> None:
    for wrong in ({"force": "perhaps"}, {"overrides": [1]}, {"stage_hours": "long"}, {"preset": 3}, {"from_stage": 1}):
        run = deployed(server, "rebuild/manual", **wrong)
        assert (run.state, run.tasks) == ("refused", {}), wrong

    run = deployed(server, "rebuild/manual", overrides={"samples.temperature": "hot"})
    assert (run.state, run.tasks) == ("Failed", {})
    assert run.message.startswith("overrides: samples.temperature: input should be a valid number")
    assert not list((folder / "runs/worktrees").iterdir())


def processes(folder: Path) -> list[psutil.Process]:
    """Toy stages, DVC's and flows' processes at work in a folder or below it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = process.info["cmdline"] or []
        ours = any(word in ("toy.py", "pipeline.dvc", "prefect.engine") for word in words)
        here = (process.info["cwd"] or "").startswith(str(folder))
        if ours and here and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_cancelling_and_a_killed_worker_leave_nothing_running(server: dict[str, str], folder: Path) -> None:
    def training() -> str:
        run_id = begin(server, "rebuild/manual", {"overrides": {"samples.top_k": 14}})
        until(lambda: any((folder / "runs/worktrees").glob("*/waiting")), 120)
        assert len(processes(folder)) >= 3
        return run_id

    cancelled = training()
    ask(server, f"/flow_runs/{cancelled}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    until(lambda: not processes(folder), 20)
    assert not list((folder / "runs/worktrees").iterdir())

    killed = training()  # so the first one does not block the pool
    assert ask(server, f"/flow_runs/{cancelled}")["state"]["name"] == "Cancelled"
    (worker,) = (p for p in psutil.process_iter(["cmdline"]) if _is_worker(p, folder))
    worker.kill()
    until(lambda: not processes(folder), 20)
    assert not list((folder / "runs/worktrees").iterdir())
    assert ask(server, f"/flow_runs/{killed}")["state"]["name"] == "Crashed"


def _is_worker(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        return "worker" in (process.info["cmdline"] or []) and process.cwd() == str(folder)
    return False


def wordmill(folder: Path, server: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=server, capture_output=True, text=True, timeout=60)


def test_wordmill_run_tells_the_stage_that_failed(
    server: dict[str, str], tmp_path: Path, make_checkout: Callable[[Path], Path]
) -> None:
    folder = make_checkout(tmp_path / "checkout")
    ran(server)
    done = wordmill(folder, server, "run", "--set", "samples.top_k=13")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "wordmill: samples: top_k: 13 is bad luck; use 12"
    assert "Traceback" not in done.stderr
    assert set(ran(server)) == STAGES - {"samples"}
    assert (folder / "params.yaml").read_bytes() == (folder / "presets/default.yaml").read_bytes()
