"""A Prefect server of its own on loopback, an agent beside it, and its API: for the drill and for the tests."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

CLIENT = "drill"  # Prefect's CSRF tokens belong to a client's name
UNFINISHED = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING")


@contextlib.contextmanager
def program(
    command: list[str], folder: Path, environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own; nothing of it is left afterwards."""
    with log.open("ab") as file:
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


@contextlib.contextmanager
def server(home: Path, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A server that keeps everything in `home`; the environment in which everything talks to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    own = {
        **environment,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "pipeline.cli", "server", "--port", str(port)]
    log = home / "server.log"
    with program(command, Path(__file__).parents[1], own, log) as process:

        def healthy() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return bool(ask(own, "/health"))
            except OSError:
                return False

        until(healthy)
        yield own


def until(condition: Callable[[], bool], seconds: float = 900) -> float:
    """Wait; the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, "waited too long"
        time.sleep(0.1)
    return time.monotonic() - began


def ask(server: Mapping[str, str], path: str, content: Any = None, method: str = "") -> Any:
    """What the server's API answers; with `content`, to a POST. Asks again while its database is locked."""
    headers = {}
    if content is not None:
        headers = {"Prefect-Csrf-Token": _token(server["PREFECT_API_URL"]), "Prefect-Csrf-Client": CLIENT}
    end = time.monotonic() + 300
    while True:
        try:
            return send(server, path, content, headers, method)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > end:
                raise
        time.sleep(0.5)


@functools.cache
def _token(url: str) -> str:
    return str(ask({"PREFECT_API_URL": url}, f"/csrf-token?client={CLIENT}")["token"])


def send(server: Mapping[str, str], path: str, content: Any, headers: Mapping[str, str], method: str = "") -> Any:
    """One request, with no headers but those given. Raises HTTPError where the server refuses."""
    body = None if content is None else json.dumps(content).encode()
    url = server["PREFECT_API_URL"] + path
    typed = {"Content-Type": "application/json", **headers}
    with urllib.request.urlopen(urllib.request.Request(url, body, typed, method=method or None), timeout=300) as answer:
        return json.loads(answer.read() or b"null")


def begin(server: Mapping[str, str], name: str, parameters: Mapping[str, Any]) -> str:
    """Start a deployment; its run's id. Raises HTTPError where the server refuses the parameters."""
    deployment = ask(server, f"/deployments/name/{name}")
    content = {"parameters": deployment["parameters"] | dict(parameters), "state": {"type": "SCHEDULED"}}
    return str(ask(server, f"/deployments/{deployment['id']}/create_flow_run", content)["id"])


def cancel(server: Mapping[str, str], run_id: str) -> None:
    """What `prefect flow-run cancel` and the page's button do."""
    ask(server, f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})


def state(server: Mapping[str, str], run_id: str) -> dict[str, Any]:
    """Name, type and message of a run's state."""
    found: dict[str, Any] = ask(server, f"/flow_runs/{run_id}")["state"]
    return found


def logs(server: Mapping[str, str], run_id: str) -> list[dict[str, Any]]:
    """A run's log so far."""
    found: list[dict[str, Any]] = []
    wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}  # the most it gives
    while True:
        page = ask(server, "/logs/filter", {**wanted, "offset": len(found)})
        found += page
        if len(page) < 200:
            return found


def rebuilding(folder: Path) -> list[psutil.Process]:
    """Flows', DVC's and stages' processes at work in a folder or below it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = process.info["cmdline"] or []
        ours = any(word in ("toy.py", "pipeline.dvc", "pipeline.engine") or word[:7] == "stages." for word in words)
        here = (process.info["cwd"] or "").startswith(str(folder))
        if ours and here and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def worker(folder: Path) -> psutil.Process:
    """The Prefect worker of the agent in `folder`."""
    (found,) = (
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(folder) and "pipeline.agent" in (process.info["cmdline"] or [])
    )
    return found
