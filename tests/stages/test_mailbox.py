"""What a stage and its tracking process say to each other, whatever libraries print and read meanwhile."""

import json
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.errors import WordmillError
from stages import mailbox
from stages.mailbox import Mailbox

PROGRAM = """
import ctypes, json, os, subprocess, sys, time
from pathlib import Path
from llm.errors import WordmillError
from stages.mailbox import serve

def noise():
    print('{"refused": "by a library"}', flush=True)
    sys.stdout.write("View experiment at: http://somewhere\\n")
    sys.__stdout__.write("to the first standard output\\n")
    sys.__stdout__.flush()
    os.write(1, b"to the descriptor\\n")
    subprocess.run(["echo", "from another program"])
    ctypes.CDLL(None).puts(b"from C")
    ctypes.CDLL(None).fflush(None)
    assert sys.stdin.read() == "" and subprocess.run(["cat"], capture_output=True).stdout == b""

class Receiver:
    def deliver(self, events):
        noise()
        with Path("delivered").open("a") as file:
            file.writelines(json.dumps(event) + "\\n" for event in events)

def connect(header):
    noise()
    if header.get("refuse"):
        raise WordmillError("the address is wrong")
    return Receiver()

def preparation(header):
    noise()
    if header.get("seconds"):
        return lambda: time.sleep(header["seconds"])

serve(connect, preparation, interval=0.05)
"""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mailbox]:
    """A mailbox whose process is as noisy as any library may be; it writes what it got to the file `delivered`."""
    monkeypatch.chdir(tmp_path)
    Path("noisy_program.py").write_text(textwrap.dedent(PROGRAM))
    return lambda **header: Mailbox("noisy_program", Path("kept.jsonl"), {"kind": "start", **header})


def test_what_libraries_print_is_no_message(opened: Callable[..., Mailbox], capfd: pytest.CaptureFixture[str]) -> None:
    box = opened()
    for number in range(50):
        box.post("metrics", step=number)
    box.close(60.0, status="FINISHED")
    events = [json.loads(line) for line in Path("delivered").read_text().splitlines()]
    assert [event.get("step") for event in events] == [*range(50), None]
    assert events[-1]["kind"] == "end"
    assert not Path("kept.jsonl").exists()
    out, err = capfd.readouterr()
    assert out == ""
    for words in ("by a library", "View experiment", "to the first", "to the descriptor", "another program", "from C"):
        assert words in err


def test_a_refusal_is_the_processs_own_line(opened: Callable[..., Mailbox]) -> None:
    box = opened(refuse=True)
    with pytest.raises(WordmillError, match=r"^the address is wrong$"):
        box.close(60.0, status="FINISHED")


def test_patience_does_not_end_the_making_of_a_store(
    opened: Callable[..., Mailbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = opened(seconds=3.0)
    box.post("metrics", step=1)
    deadline = time.monotonic() + 60
    while not box._preparation._active:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    box.close(0.5, status="FINISHED")
    assert [json.loads(line)["kind"] for line in Path("delivered").read_text().splitlines()] == ["metrics", "end"]

    # A stage that was killed does not wait for it; a store that is never made is given up.
    for status, limit in (("KILLED", 600.0), ("FINISHED", 0.5)):
        monkeypatch.setattr(mailbox, "PREPARATION_PATIENCE", limit)
        Path("kept.jsonl").unlink(missing_ok=True)
        box = opened(seconds=600.0)
        while not box._preparation._active:
            time.sleep(0.01)
        began = time.monotonic()
        box.close(-4.5, status=status)  # to which come 5 s
        assert time.monotonic() - began < 60
