"""One training at a time on a device, told by who waits, and free again however the holder ended."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages import device

HOLD = """
import sys, time
from types import SimpleNamespace
from stages.device import hold
hold(sys.argv[1], SimpleNamespace(type="cpu"))
print("holds", flush=True)
time.sleep(600)
"""


def start(stage: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, stage], stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_the_second_training_waits_and_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDMILL_LOCKS", str(tmp_path))
    first = start("pretrain")
    try:
        assert said(first) == "holds"
        second = start("dpo")
        try:
            line = said(second)
            assert line.startswith("dpo: waits for cpu, which `pretrain` in ")
            assert f"(process {first.pid}, since 20" in line
            first.send_signal(signal.SIGKILL)
            assert said(second) == "holds"
        finally:
            second.kill()
            second.communicate()
    finally:
        first.kill()
        first.communicate()


def test_one_process_may_train_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDMILL_LOCKS", str(tmp_path))
    device.hold("pretrain", torch.device("cpu"))
    device.hold("dpo", torch.device("cpu"))
    assert device.identity(torch.device("mps")) == "mps"
