"""What MLflow costs a training: the same steps without it, with its database, and with a server that does not answer.

    python -m benchmarks.tracking [--steps 250] [--rounds 3] [--contestants without,database,slow]

In a checkout whose data stages have run (`dvc repro shards`); its params, with so many steps. Contestants run in turn,
each the stage as a process of its own, in a copy of what it reads. Seconds are those from the first step's record to
the last one's, and those of the whole process; processor seconds are of the process that delivers beside it. `slow` is
a server on loopback that answers each request after 30 s.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import psutil

from pipeline.presets import changed

ANSWERS_AFTER = 30.0  # seconds
CONTESTANTS = ("without", "database", "slow")
WITHOUT = """
import stages.stage as around

class Nothing:
    def __init__(self, **known): pass
    def __getattr__(self, name): return lambda *given, **named: None
    def __enter__(self): return self
    def __exit__(self, *error): pass

around.Tracker = Nothing
from stages.pretrain import Params, run
around.main("pretrain", Params, run)
"""


class Took(NamedTuple):
    """Seconds: of the steps, of the whole process, and of the processor by what delivers beside it."""

    steps: float
    whole: float
    beside: float


class _Slow(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        time.sleep(ANSWERS_AFTER)
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST = _answer

    def log_message(self, *given: object) -> None:
        pass


@contextmanager
def slow_server() -> Iterator[str]:
    """The address of a server that takes its time."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def prepared(folder: Path, steps: int) -> None:
    """What the stage reads, and params with so many steps."""
    for name in ("corpus", "tokenizer", "shards"):
        if not Path("data", name).is_dir():
            sys.exit(f"data/{name}: not found; run `dvc repro shards` first")
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / name).symlink_to(Path("data", name).absolute())
    for name in ("llm", "stages", "pipeline"):
        (folder / name).symlink_to(Path(name).absolute())
    shutil.copy("dvc.yaml", folder)
    text = Path("params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(changed(text, {"pretrain.steps": steps}, "params.yaml"), encoding="utf-8")


def timed(contestant: str, steps: int, address: str) -> Took:
    """One training, in a folder of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared(folder, steps)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"PYTHONPATH": temporary}
        if contestant == "slow":
            environment["MLFLOW_TRACKING_URI"] = address
        how = ["-c", WITHOUT] if contestant == "without" else ["-m", "stages.pretrain"]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *how], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout
        first = last = beside = 0.0
        for line in process.stdout:
            if line.startswith(b"step ") and b"  loss " in line:
                last = time.perf_counter()
                first = first or last
                for child in psutil.Process(process.pid).children():
                    used = child.cpu_times()
                    beside = used.user + used.system
        if process.wait():
            sys.exit(f"{contestant}: ended with status {process.returncode}")
        return Took(last - first, time.perf_counter() - began, beside)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    given = parser.parse_args()
    contestants = given.contestants.split(",")
    took: dict[str, list[Took]] = {name: [] for name in contestants}
    with slow_server() as address:
        for _ in range(given.rounds):
            for name in contestants:
                took[name].append(timed(name, given.steps, address))
                print(f"{name:9} {took[name][-1]}", flush=True)
    for name, rounds in took.items():
        for figure in Took._fields:
            values = [getattr(each, figure) for each in rounds]
            print(f"{name:9} {figure:7} {statistics.median(values):7.2f} s ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
