"""MLflow servers for tests: real ones on loopback, and ones that only seem to be MLflow's."""

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.stages.test_tracking import kill_all_of, wait_for

NO_STORE = "http://127.0.0.1:9"  # nothing listens there: for tests that a run in MLflow would take longer than
ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "for-a-test-1"}


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@contextlib.contextmanager
def server(port: int, store: str, folder: Path, *options: str) -> Iterator[str]:
    """A real MLflow server; its address."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1", *options]
    command += ["--host", "127.0.0.1", "--port", str(port), "--artifacts-destination", str(folder / "served")]
    settings = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN["MLFLOW_TRACKING_PASSWORD"],  # used with --app-name basic-auth
        **({"MLFLOW_AUTH_CONFIG_PATH": str(config)} if (config := folder / "auth.ini").exists() else {}),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for a test",
    }
    given = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**given, **settings}, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    try:

        def healthy() -> bool:
            assert process.poll() is None, (folder / "server.log").read_text()
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),
            ):
                return True
            return False

        wait_for(healthy)
        yield f"http://127.0.0.1:{port}"
    finally:
        kill_all_of(process)


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that sends these bytes to everybody and hangs up; its address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if answer:
                self.request.recv(65536)
                self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


def http(status: str, body: str, kind: str = "application/json") -> bytes:
    """The bytes of an HTTP answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()
