"""One training at a time on a device, told by who waits, and free again however the holder ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from llm import nvidia
from llm.errors import WordmillError
from stages import device, system_metrics
from tests.simulated import simulate

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


def test_a_training_takes_a_free_gpu_and_several_take_all_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORDMILL_LOCKS", str(tmp_path))
    monkeypatch.setattr(device, "_held", {})
    with simulate("cuda", gpus=4):
        others = [FileLock(tmp_path / f"cuda-GPU-{index}.lock") for index in (0, 2)]
        for lock in others:
            lock.acquire()
        (tmp_path / "cuda-GPU-0.json").write_text('{"pid": 1, "stage": "dpo", "folder": "/x", "since": "today"}')
        (one,) = device.hold("pretrain", torch.device("cuda", 0))
        assert one == torch.device("cuda", 1)
        assert device.hold("dpo", torch.device("cuda", 0)) == [one]  # the same process trains on where it has its GPU

        def others_end(seconds: float) -> None:
            free = FileLock(tmp_path / "cuda-GPU-3.lock")
            free.acquire(timeout=0)  # while it waits for a third one it keeps none
            free.release()
            others[1].release()

        monkeypatch.setattr(device.time, "sleep", others_end)
        taken = device.hold("pretrain", torch.device("cuda", 0), 3)
        assert {each.index for each in taken} == {1, 2, 3}
        assert "pretrain: waits for 3 of 4 GPUs, which `dpo` in /x (process 1, since today)" in capsys.readouterr().out
        monkeypatch.setenv(device.TAKEN, "1,2,3")
        assert [device.gpu_of(rank) for rank in range(3)] == [1, 2, 3]
        others[0].release()
    for lock in device._held.values():
        lock.release()
    monkeypatch.delenv(device.TAKEN)
    assert device.gpu_of(2) == 2


def test_a_gpu_without_its_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(system_metrics, "find_spec", lambda name: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert system_metrics.missing_package() == ""
    (tmp_path / "nvidia3").touch()
    assert system_metrics.missing_package().endswith("pip install -e '.[gpu]'")
    monkeypatch.setattr(system_metrics, "find_spec", lambda name: "there")
    assert system_metrics.missing_package() == ""
