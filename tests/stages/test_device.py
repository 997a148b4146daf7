"""One training at a time on a device, told by who waits, and free again however the holder ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llm.errors import WordmillError
from stages import device

HOLD = """
import sys, time
from types import SimpleNamespace
from stages.device import hold
hold(sys.argv[1], SimpleNamespace(type="cpu"))
print("holds", flush=True)
time.sleep(60)
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


def test_a_folder_that_another_user_has_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORDMILL_LOCKS")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = tmp_path / f"wordmill-{os.getuid()}"
    assert device.locks() == own
    assert own.stat().st_mode & 0o777 == 0o700

    own.chmod(0o777)
    with pytest.raises(WordmillError, match="can be written to by others; remove it, or name another"):
        device.locks()
    own.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    own.symlink_to(elsewhere)
    with pytest.raises(WordmillError, match="is not a folder of this user's"):
        device.locks()
    own.unlink()
    own.write_text("a file")
    with pytest.raises(WordmillError, match="is not a folder of this user's"):
        device.locks()
    own.unlink()
    own.mkdir(mode=0o700)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    own.rename(tmp_path / "wordmill-12345")
    with pytest.raises(WordmillError, match="is not a folder of this user's"):
        device.locks()


def test_a_link_in_the_folder_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDMILL_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(device, "_held", {})
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (device.locks() / "mps.json").symlink_to(precious)
    device.hold("pretrain", torch.device("mps"))
    assert precious.read_text() == "kept"
    assert '"stage": "pretrain"' in (device.locks() / "mps.json").read_text()
