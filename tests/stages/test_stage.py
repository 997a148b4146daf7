"""What surrounds every stage, tried on a small one in processes of its own that are killed, interrupted and doubled."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from llm.errors import WordmillError
from stages.lineage import digest
from stages.stage import disk_problem
from tests.waiting import LIMIT, wait_for

REPO = Path(__file__).parents[2]

# Its tracker takes no part in what is tested here but the end: closing a run takes a moment, like MLflow's.
TOY = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from llm.errors import WordmillError
from stages import stage as around

class SlowlyClosed:
    def __init__(self, **known): pass
    metrics = artifact = dataset = model = tags = text = headlines = outputs = sources = lambda self, *args: None
    def __enter__(self): return self
    def __exit__(self, kind, error, trace):
        Path("closing").touch()
        time.sleep(0.5)
        Path("closed").write_text(kind.__name__ if kind else "")

@dataclass(frozen=True)
class Samples:
    seconds: float
    mistake: str
    path: str

@dataclass(frozen=True)
class Params:
    samples: Samples

def run(params, stage):
    kept = stage.scratch / "kept"
    seen = kept.read_text() if kept.exists() else "nothing"
    if params.samples.mistake == "user":
        raise WordmillError("samples.mistake: user; use none")
    if params.samples.mistake == "full":
        Path("full/out.txt").write_text("some more than there is room for" * 10_000)
    if params.samples.mistake == "forbidden":
        raise PermissionError(13, "Permission denied", "out.txt")
    if params.samples.mistake == "forbidden elsewhere":
        raise PermissionError(13, "Permission denied", "/elsewhere")
    if params.samples.mistake == "bug":
        raise KeyError("deep down")
    kept.write_text(f"{params.samples.seconds}")
    Path("ready").touch()
    until = time.monotonic() + (params.samples.seconds if seen == "nothing" else 0)
    while time.monotonic() < until and not Path("go").exists():
        time.sleep(0.01)
    Path("out.txt").write_text(f"found {seen}")

around.Tracker = SlowlyClosed
around.params_file.defaults = lambda: {}  # its sections are its own
around.LOCK_SECONDS = 0.2
around.main("toy", Params, run)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("WORDMILL_PREFLIGHT", "own")  # there are no other stages
    Path("toy.py").write_text(TOY)
    Path("in.txt").write_text("one")
    Path("mine.txt").write_text("one")
    toy = f"cmd: 'exec {sys.executable} toy.py', deps: [toy.py, in.txt], params: [samples], outs: [out.txt]"
    Path("dvc.yaml").write_text(f"stages: {{toy: {{{toy}}}}}")
    write_params(60)
    return tmp_path


def write_params(seconds: float, mistake: str = "none") -> None:
    Path("params.yaml").write_text(f"samples: {{seconds: {seconds}, mistake: {mistake}, path: mine.txt}}\n")


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command (the toy itself, if none is given) in a session of its own; nothing of it outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        Path("ready").unlink(missing_ok=True)
        process = subprocess.Popen(
            command or (sys.executable, "toy.py"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for orphan in toys(folder):
        orphan.kill()


def toys(folder: Path) -> list[psutil.Process]:
    """Toys that run in this folder, whoever started them."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if alive and process.info["cwd"] == str(folder) and "toy.py" in (process.info["cmdline"] or []):
            found.append(process)
    return found


def scratches() -> list[Path]:
    return sorted(Path("runs/toy").iterdir())


Start = Callable[..., subprocess.Popen[str]]


def test_success_leaves_the_output_and_no_scratch(start: Start) -> None:
    write_params(0)
    assert start().wait(LIMIT) == 0
    assert Path("out.txt").read_text() == "found nothing"
    assert scratches() == []
    assert Path("closed").read_text() == ""


def test_a_killed_run_finds_its_own_scratch_again(start: Start) -> None:
    process = start()
    wait_for(Path("ready").exists)
    process.kill()
    process.wait()
    assert not Path("closed").exists()  # nothing of it had a chance to run
    (scratch,) = scratches()
    assert start().wait(LIMIT) == 0
    assert Path("out.txt").read_text() == "found 60.0"
    assert not scratch.exists()


CHANGES: dict[str, Callable[[], object]] = {
    "params": lambda: write_params(61),
    "input": lambda: Path("in.txt").write_text("two"),
    "code": lambda: Path("toy.py").write_text(TOY.replace("some more", "much more")),
    "the user's own file": lambda: Path("mine.txt").write_text("two"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_run_never_sees_a_stale_scratch(start: Start, change: str) -> None:
    process = start()
    wait_for(Path("ready").exists)
    process.kill()
    process.wait()
    (stale,) = scratches()
    CHANGES[change]()
    Path("go").touch()
    told, _ = start().communicate(timeout=LIMIT)
    assert Path("out.txt").read_text() == "found nothing"
    assert scratches() == [stale]  # for whoever takes the change back
    assert f"toy: this run differs from {stale} (stopped, 0.0 MB): " in told


@pytest.mark.parametrize("what", ["comment", "docstring", "blank lines", "touched"])
def test_a_change_without_meaning_finds_its_state_again(start: Start, what: str) -> None:
    process = start()
    wait_for(Path("ready").exists)
    process.kill()
    process.wait()
    if what == "touched":
        for name in ("toy.py", "in.txt", "params.yaml", "mine.txt"):
            Path(name).touch()
    else:
        before, after = {
            "comment": ("import sys, time", "import sys, time  # changed"),
            "docstring": ("def run(params, stage):\n", 'def run(params, stage):\n    """Changed."""\n'),
            "blank lines": ("\nclass", "\n\n\n\nclass"),
        }[what]
        assert before in TOY
        Path("toy.py").write_text(TOY.replace(before, after))
    assert start().wait(LIMIT) == 0
    assert Path("out.txt").read_text() == "found 60.0"


@pytest.mark.parametrize("change", [*CHANGES, "params.yaml is broken", "an input is gone", "dvc.yaml", "touched"])
def test_dvc_never_records_what_was_changed_meanwhile(folder: Path, dvc: str, start: Start, change: str) -> None:
    """Neither in dvc.lock nor in the run cache; and with the change undone the work is taken up again."""
    names = ("params.yaml", "in.txt", "toy.py", "mine.txt", "dvc.yaml")
    before = {name: Path(name).read_bytes() for name in names}
    process = start(dvc, "repro")
    wait_for(Path("ready").exists)
    if change == "params.yaml is broken":
        Path("params.yaml").write_text("samples: {seconds: 60")
    elif change == "an input is gone":
        Path("in.txt").unlink()
    elif change == "dvc.yaml":  # DVC read it when it began, and records that
        Path("dvc.yaml").write_text(Path("dvc.yaml").read_text().replace("in.txt", "in.txt, other.txt"))
    elif change == "touched":
        for name in names:
            Path(name).write_bytes(before[name])
    else:
        CHANGES[change]()
    Path("go").touch()
    _, told = process.communicate(timeout=LIMIT)
    if change in ("dvc.yaml", "touched"):
        assert process.returncode == 0, told
        return
    assert process.returncode != 0
    assert told.startswith("toy: changed while the stage ran: ")
    assert "Traceback" not in told
    assert not Path("dvc.lock").exists()
    assert not Path(".dvc/cache/runs").exists()
    (kept,) = scratches()
    assert (kept / "kept").exists()
    for name, content in before.items():
        Path(name).write_bytes(content)
    Path("go").unlink()
    assert start(dvc, "repro").wait(LIMIT) == 0
    assert Path("out.txt").read_text() == "found 60.0"


def test_code_that_was_changed_while_it_was_loaded_is_not_believed(start: Start) -> None:
    """The process runs the code that it has loaded, DVC would record the file as it is now."""
    slow = "import stages, time\nfrom pathlib import Path\nPath('ready').touch()\n"
    slow += "while not Path('go').exists(): time.sleep(0.01)\n"
    Path("toy.py").write_text(slow + TOY)
    process = start()
    wait_for(Path("ready").exists)
    Path("toy.py").write_text(slow + TOY + "# changed\n")
    Path("go").touch()
    _, told = process.communicate(timeout=LIMIT)
    assert told == "toy: toy.py: was changed while the stage started; run `dvc repro` again\n"
    assert process.returncode == 75
    assert start().wait(LIMIT) == 0


def test_a_second_one_of_the_same_is_refused_in_one_line(start: Start) -> None:
    first = start()
    wait_for(Path("ready").exists)
    second = start()
    _, told = second.communicate(timeout=LIMIT)
    assert second.returncode == 2
    assert told == "toy: another `toy` runs in this folder; wait for it, or stop it, and try again\n"
    assert first.poll() is None


@pytest.mark.parametrize(("first", "status", "kind"), [("TERM", 143, "SystemExit"), ("INT", 130, "KeyboardInterrupt")])
@pytest.mark.parametrize("second", ["TERM", "INT"])
def test_only_the_first_signal_counts(start: Start, first: str, status: int, kind: str, second: str) -> None:
    process = start()
    wait_for(Path("ready").exists)
    process.send_signal(signal.Signals[f"SIG{first}"])
    wait_for(Path("closing").exists)
    process.send_signal(signal.Signals[f"SIG{second}"])
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == status
    assert Path("closed").read_text() == kind  # the second one did not break off the closing
    assert told == ("toy: interrupted; `dvc repro` goes on where it stopped\n" if first == "INT" else "")
    assert len(scratches()) == 1
    assert start().wait(LIMIT) == 0
    assert Path("out.txt").read_text() == "found 60.0"


def test_mistakes_are_one_line_and_bugs_a_traceback(start: Start) -> None:
    write_params(0, "user")
    process = start()
    _, told = process.communicate(timeout=LIMIT)
    assert (process.returncode, told) == (2, "toy: samples.mistake: user; use none\n")
    write_params(0, "bug")
    process = start()
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert told.startswith("Traceback")
    assert told.endswith("KeyError: 'deep down'\n")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line(full: Path, start: Start) -> None:
    write_params(0, "full")
    process = start()
    _, told = process.communicate(timeout=LIMIT)
    line = "toy: no space left on device while writing an output; free some and run `dvc repro` again\n"
    assert (process.returncode, told) == (2, line)


@pytest.mark.parametrize("place", ["full", "runs"])  # of an output, and of the stage's own state
def test_a_read_only_folder_is_one_line(folder: Path, start: Start, place: str) -> None:
    Path(place).mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder / place)]
    if sys.platform != "linux" or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        write_params(0, "full")  # writes to full/
        process = start()
        _, told = process.communicate(timeout=LIMIT)
        assert process.returncode == 2
        assert told.startswith("toy: ")
        assert f"{place}/" in told
        assert told.endswith(": the file system is read-only; make it writable and run `dvc repro` again\n")
        assert told.count("\n") == 1
    finally:
        subprocess.run(["umount", str(folder / place)], check=True)


@pytest.mark.parametrize("name", ["data.parquet", "model.safetensors"])
def test_a_full_disk_under_other_libraries(full: Path, name: str) -> None:
    numbers = torch.arange(100_000)
    if name.endswith("parquet"):
        with pytest.raises(OSError, match="No space left") as caught:
            pq.write_table(pa.table({"n": numbers.numpy()}), full / name)
    else:
        with pytest.raises(SafetensorError, match="No space left") as caught:
            save_file({"n": numbers}, full / name)
    assert (disk_problem(caught.value) or "").startswith("no space left on device while writing")


def test_no_permission_is_one_line_for_our_own_files_only(start: Start) -> None:
    write_params(0, "forbidden")
    process = start()
    _, told = process.communicate(timeout=LIMIT)
    line = "toy: out.txt: permission denied; see with `ls -l` whose it is, and run `dvc repro` again\n"
    assert (process.returncode, told) == (2, line)
    write_params(0, "forbidden elsewhere")
    process = start()
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert told.startswith("Traceback")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EDQUOT, "x", "a"), "disk quota exceeded while writing a; free some and run `dvc repro` again"),
        (OSError(errno.EROFS, "x", "a"), "a: the file system is read-only; make it writable and run `dvc repro` again"),
        (FileNotFoundError(errno.ENOENT, "x", "a"), None),
        (ConnectionResetError(errno.ECONNRESET, "x"), None),
        (ValueError("28"), None),
    ],
)  # fmt: skip
def test_what_is_a_disk_problem(error: Exception, line: str | None) -> None:
    assert disk_problem(error) == line


@pytest.fixture
def dvc(folder: Path) -> str:
    program = str(Path(sys.executable).with_name("dvc"))
    subprocess.run([program, "init", "-q", "--no-scm"], check=True)
    return program


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("how", ["KILL", "TERM"])
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])  # DVC's choice: $SHELL; not each of them execs by itself
def test_it_dies_with_dvc(
    folder: Path, dvc: str, start: Start, how: str, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path(shell).exists():
        pytest.skip(f"there is no {shell}")
    monkeypatch.setenv("SHELL", shell)
    process = start(dvc, "repro")
    wait_for(Path("ready").exists)
    assert len(toys(folder)) == 1
    process.send_signal(signal.Signals[f"SIG{how}"])
    process.wait(LIMIT)
    wait_for(lambda: not toys(folder))
    assert Path("closed").read_text() == "SystemExit"
    assert subprocess.run([dvc, "repro", "-q"]).returncode == 0
    assert Path("out.txt").read_text() == "found 60.0"


def test_ctrl_c_ends_dvc_and_stage(folder: Path, dvc: str, start: Start) -> None:
    process = start(dvc, "repro")
    wait_for(Path("ready").exists)
    os.killpg(process.pid, signal.SIGINT)  # a terminal tells all that run in it
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert "toy: interrupted; `dvc repro` goes on where it stopped" in told
    assert "Traceback" not in told
    assert toys(folder) == []
    assert subprocess.run([dvc, "repro", "-q"]).returncode == 0
    assert Path("out.txt").read_text() == "found 60.0"


def test_digest_tells_names_and_contents_apart(tmp_path: Path) -> None:
    def made(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return digest(tmp_path / name)

    first = made("first", {"a": "1", "b/c": "2"})
    assert made("same", {"b/c": "2", "a": "1"}) == first
    assert made("moved", {"a": "1", "c": "2"}) != first
    assert made("swapped", {"a": "2", "b/c": "1"}) != first
    assert made("more", {"a": "1", "b/c": "2", "d": ""}) != first
    assert digest(tmp_path / "first/a") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    with pytest.raises(WordmillError, match="not found; `dvc repro` makes it"):
        digest(tmp_path / "none")
