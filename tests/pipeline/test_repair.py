"""DVC's own files, cut by a kill anywhere, are whole again before DVC is started; what is not cut is left alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import repair as module
from pipeline.repair import is_whole, repair
from stages import lineage

RWLOCK = Path(".dvc/tmp/rwlock")
WHOLE = '{"read": {}, "write": {"/x": {"pid": 1, "cmd": "dvc repro"}}}'
STAGE = "  {name}:\n    cmd: make it\n    deps:\n    - path: in\n      hash: md5\n      md5: {md5}\n      size: 3\n"
LOCK = "schema: '2.0'\nstages:\n" + "".join(STAGE.format(name=name, md5=name * 32) for name in "abc")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which no DVC runs."""
    monkeypatch.chdir(tmp_path)
    for place in (".dvc/tmp", "runs"):
        Path(place).mkdir(parents=True)
    monkeypatch.setattr(module, "_dvc_runs", lambda folder: False)
    return tmp_path


@pytest.mark.parametrize("length", [0, 1, 9, 20, 40, len(WHOLE) - 1])
def test_a_cut_list_of_readers_is_removed(folder: Path, length: int, capsys: pytest.CaptureFixture[str]) -> None:
    RWLOCK.write_text(WHOLE[:length])
    repair()
    assert not RWLOCK.exists()
    assert capsys.readouterr().out.startswith(".dvc/tmp/rwlock: a killed DVC has left it unreadable; removed")


@pytest.mark.parametrize("text", ["[]", "1", '{"read": 1}', '{"write": {"/x": {"cmd": "dvc"}}}', "\0\0\0"])
def test_a_list_that_is_none_is_removed(folder: Path, text: str) -> None:
    RWLOCK.write_text(text)
    repair()
    assert not RWLOCK.exists()


def test_a_process_number_that_another_program_has_now_blocks_nobody(folder: Path) -> None:
    RWLOCK.write_text(json.dumps({"write": {"/x": {"pid": os.getpid(), "cmd": "dvc repro"}}}))
    repair()
    assert not RWLOCK.exists()
    RWLOCK.write_text(json.dumps({"write": {"/x": {"pid": 2**22 + 1, "cmd": "dvc repro"}}}))  # no process: DVC sees it
    repair()
    assert RWLOCK.exists()


def test_every_cut_of_dvc_lock_ends_in_one_that_dvc_reads(folder: Path) -> None:
    for length in range(0, len(LOCK), 3):
        for kept in ("", LOCK):
            Path("dvc.lock").write_text(LOCK[:length])
            lineage.KEPT_LOCK.unlink(missing_ok=True)
            if kept:
                lineage.KEPT_LOCK.write_text(kept)
            repair(tell=lambda line: None)
            assert not Path("dvc.lock").exists() or is_whole(Path("dvc.lock").read_text())
            if not is_whole(LOCK[:length]):
                assert (Path("dvc.lock").read_text() if kept else "") == kept
                assert Path("runs/dvc.lock.cut").read_text() == LOCK[:length]


def test_the_commits_lock_comes_back_where_no_stage_has_kept_one(folder: Path) -> None:
    Path("dvc.lock").write_text(LOCK)
    for command in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-qm", "one"]):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *who, *command], check=True)
    Path("dvc.lock").write_text(LOCK[:60])
    repair()
    assert Path("dvc.lock").read_text() == LOCK


def test_a_merge_is_the_users(folder: Path) -> None:
    text = LOCK + "<<<<<<< HEAD\n  d: {}\n=======\n  e: {}\n>>>>>>> other\n"
    Path("dvc.lock").write_text(text)
    repair()
    assert Path("dvc.lock").read_text() == text


def test_what_is_whole_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RWLOCK.write_text('{"read": {}, "write": {}}')
    Path("dvc.lock").write_text(LOCK)
    lineage.KEPT_LOCK.write_text("other")
    repair()
    assert RWLOCK.exists()
    assert Path("dvc.lock").read_text() == LOCK
    assert capsys.readouterr().out == ""


def test_a_stage_keeps_whole_locks_alone(folder: Path) -> None:
    lineage.keep_lock()
    Path("dvc.lock").write_text(LOCK)
    lineage.keep_lock()
    Path("dvc.lock").write_text("stages: {a: [")
    lineage.keep_lock()
    assert lineage.KEPT_LOCK.read_text() == LOCK


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Start a program of some name in the folder, as DVC is one."""
    processes: list[subprocess.Popen[str]] = []

    def start(name: str) -> None:
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("print('ready', flush=True); input()")
        command = [sys.executable, str(program)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        processes.append(process)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"

    yield start
    for process in processes:
        process.communicate("\n")


def test_nothing_is_touched_while_dvc_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: Callable[[str], None]
) -> None:
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    RWLOCK.write_text("{")
    running("dvc")
    repair()
    assert RWLOCK.read_text() == "{"


def test_another_program_hinders_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: Callable[[str], None]
) -> None:
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    RWLOCK.write_text("{")
    running("editor")
    repair()
    assert not RWLOCK.exists()


def test_dvc_starts_again_after_both_were_cut(checkout: Path) -> None:
    """By what starts DVC for the user: `wordmill check`, with which `make repro` begins, and a flow's own."""
    from pipeline import dvc

    dvc.run("corpus", lambda line: None)
    whole = Path("dvc.lock").read_text()
    check = [sys.executable, "-m", "pipeline.cli", "check"]
    for first in (dvc.graph, lambda: subprocess.run(check, check=True)):
        RWLOCK.write_text('{"wri')
        Path("dvc.lock").write_text(whole[: len(whole) // 2 - 3] + "\n  - {")
        assert subprocess.run(["dvc", "status"], capture_output=True).returncode != 0
        first()
        assert subprocess.run(["dvc", "repro", "-s", "corpus"], capture_output=True).returncode == 0
        assert Path("dvc.lock").read_text() == whole
