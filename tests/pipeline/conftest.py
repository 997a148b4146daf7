"""A small checkout: this project's own packages, presets and deployments over four stages that take no time."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent

TOY = '''
"""A stage: writes what it got, so that its output is a function of its params and its inputs."""
import os, sys, time
from pathlib import Path
from ruamel.yaml import YAML

name, section, *needed = sys.argv[1:]
content = YAML(typ="safe").load(Path("params.yaml"))[section]
if content.get("top_k") == 13:
    print("a line before it", flush=True)
    sys.exit(f"{name}: top_k: 13 is bad luck; use 12")
flaky = Path(os.environ.get("FLAKY", "flaky"))
if flaky.exists():
    flaky.unlink()
    print(f"{name}: the network was away", flush=True)
    sys.exit(75)
if content.get("top_k") == 14:
    Path("waiting").touch()
    time.sleep(1200)
print(f"made {name}", flush=True)
Path(f"{name}.out").write_text(repr([name, sorted(content.items()), [Path(f"{n}.out").read_text() for n in needed]]))
if name == "samples":
    Path("samples.json").write_text(f'{{"top_k": {content["top_k"]}, "temperature": {content["temperature"]}}}')
    Path("reports").mkdir(exist_ok=True)
    Path("reports/samples.md").write_text("# Samples\\n\\nOnce there was\\n")
with open(os.environ.get("RAN_LOG", "ran.log"), "a") as log:
    log.write(name + chr(10))
'''

PIPELINE = """
stages:
  samples:
    cmd: exec python toy.py samples samples pretrain preferences
    deps: [toy.py, pretrain.out, preferences.out]
    params: [samples]
    outs: [samples.out, reports/samples.md]
    metrics: [samples.json: {cache: false}]
  pretrain: {cmd: exec python toy.py pretrain pretrain corpus, deps: [toy.py, corpus.out], params: [pretrain], outs: [pretrain.out]}
  preferences:
    cmd: exec python toy.py preferences preferences corpus
    deps: [toy.py, corpus.out]
    params: [preferences]
    outs: [preferences.out]
  corpus: {cmd: exec python toy.py corpus corpus, deps: [toy.py], params: [corpus], outs: [corpus.out]}
"""  # noqa: E501


@pytest.fixture(scope="session")
def quiet() -> dict[str, str]:
    """An environment in which nothing reports home."""
    names = {"DVC_NO_ANALYTICS": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    return {**os.environ, **names, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def make_checkout(quiet: dict[str, str]) -> Callable[[Path], Path]:
    """A function that makes a small checkout in a new folder."""
    return lambda folder: _make_checkout(folder, quiet)


def _make_checkout(folder: Path, environment: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for package in ("llm", "stages", "pipeline", "presets"):
        shutil.copytree(REPO / package, folder / package)
    shutil.copy(REPO / "prefect.yaml", folder)
    shutil.copy(REPO / "presets/default.yaml", folder / "params.yaml")
    (folder / "toy.py").write_text(TOY)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / ".gitignore").write_text("/runs/\n/ran.log\n__pycache__/\n")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder


@pytest.fixture
def checkout(
    tmp_path: Path, make_checkout: Callable[[Path], Path], quiet: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A fresh small checkout; the test runs in it."""
    folder = make_checkout(tmp_path / "checkout")
    monkeypatch.chdir(folder)
    for name, value in quiet.items():
        monkeypatch.setenv(name, value)
    return folder
