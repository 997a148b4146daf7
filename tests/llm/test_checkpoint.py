"""Checkpoints are whole or not there: after a kill, after damage, and only the newest are kept."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from llm import checkpoint
from llm.errors import WordmillError

WRITER = """
import sys, torch
from pathlib import Path
from llm import checkpoint
step = 0
while True:
    step += 1
    checkpoint.write(Path(sys.argv[1]), step, {"w": torch.full((300_000,), float(step))}, {"step": step})
    print(step, flush=True)
"""


def test_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b.c": torch.arange(5)}
    checkpoint.write(tmp_path, 7, tensors, {"records": [{"loss": 0.1 + 0.2, "accuracy": 1.0}]})
    found = checkpoint.latest(tmp_path)
    assert found is not None
    step, read, state = found
    assert step == 7
    assert state == {"records": [{"loss": 0.1 + 0.2, "accuracy": 1.0}]}
    assert list(state["records"][0]) == ["loss", "accuracy"]  # files are written from them, column by column
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_the_tensor_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        "z": torch.randn(3, 5, dtype=torch.float64),
        "a": torch.tensor(7),
        "b": torch.randn(2, 3).to(torch.bfloat16).T,  # not contiguous
        "c": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
    }
    path = checkpoint.write(tmp_path, 1, tensors, {}) / "tensors.safetensors"
    read = load(path.read_bytes())
    assert set(read) == set(tensors)
    assert all(torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in tensors.items())


def test_the_background_writes_the_state_of_that_step(tmp_path: Path) -> None:
    weight = torch.zeros(1_000_000)
    with checkpoint.Writer(tmp_path, kept=3) as writer:
        for step in (1, 2, 3):
            weight.fill_(step)
            state = {"curve": [step]}
            writer.write(step, {"w": weight}, state)
            weight.fill_(-1)
            state["curve"].append(-1)
    for step in (3, 2, 1):
        found = checkpoint.latest(tmp_path)
        assert found is not None
        assert found[0] == step
        assert found[2] == {"curve": [step]}
        assert (found[1]["w"] == step).all()
        shutil.rmtree(tmp_path / f"step-{step:08d}")


def test_a_full_disk_leaves_the_last_one_and_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path, 1, {"w": torch.ones(9)}, {})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="step-00000002") as caught, checkpoint.Writer(tmp_path, kept=2) as writer:
        writer.write(2, {"w": torch.ones(9)}, {})
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert (checkpoint.latest(tmp_path) or [0])[0] == 1


def test_one_written_after_a_fallback_replaces_the_damaged(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.write(tmp_path, step, {"w": torch.zeros(1)}, {})
    (tmp_path / "step-00000020/state.json").write_text("{")
    checkpoint.write(tmp_path, 15, {"w": torch.zeros(1)}, {}, kept=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000015"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".step-00000003.writing").mkdir()  # as a killed run leaves it
    for step in (5, 10, 100, 1000):
        checkpoint.write(tmp_path, step, {"w": torch.zeros(1)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000100", "step-00001000"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_newest_one_falls_back_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: str
) -> None:
    for step in (1, 2):
        checkpoint.write(tmp_path, step, {"w": torch.full((100,), float(step))}, {"loss": 2.0 / 3})
    path = tmp_path / "step-00000002" / file
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    else:
        path.unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[0] == 1
    assert "step-00000002 is damaged" in capsys.readouterr().out


def test_one_wrong_digit_of_a_figure_is_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint.write(tmp_path, 1, {"w": torch.zeros(1)}, {"loss": 0.123}) / "state.json"
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=path.parent, capture_output=True, text=True)
    assert sums.stdout == "tensors.safetensors: OK\nstate.json: OK\n"
    path.write_text(path.read_text().replace("0.123", "0.124"))
    assert checkpoint.latest(tmp_path) is None
    assert f"{tmp_path}: no checkpoint is whole; beginning anew" in capsys.readouterr().out


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path, 1, {"w": torch.zeros(1)}, {})
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        checkpoint.write(tmp_path, 2, {"w": torch.zeros(1)}, {})
    with pytest.raises(WordmillError, match=r"step-00000002: a checkpoint of format 2, and this program reads up to 1"):
        checkpoint.latest(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None


@pytest.mark.parametrize("delay", [0.013, 0.11, 0.29])
def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path, delay: float) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    first = int(writer.stdout.readline())
    time.sleep(delay)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    found = checkpoint.latest(tmp_path)
    writer.stdout.close()
    assert found is not None
    step, tensors, state = found
    assert step >= first
    assert state == {"step": step}
    assert (tensors["w"] == step).all()
