"""The last lines that a process has printed, for the record of one that fails."""

import re
import sys
from collections import deque
from typing import Any, TextIO

KEPT = 200  # lines


class _Copy:
    """A stream that goes on as it was, and leaves a copy of what is written in a list."""

    def __init__(self, stream: TextIO, pieces: deque[str]) -> None:
        self._stream = stream
        self._pieces = pieces

    def write(self, text: str) -> int:
        self._pieces.append(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_pieces: deque[str] = deque(maxlen=KEPT * 4)  # a print is two pieces, its line and the line's end


def keep() -> None:
    """From now on remember what is printed to standard output and error by Python code."""
    sys.stdout = _Copy(sys.stdout, _pieces)
    sys.stderr = _Copy(sys.stderr, _pieces)


def printed() -> str:
    """The last lines; of a progress bar, which writes over itself, the last state."""
    lines = "".join(_pieces).split("\n")
    ends = [re.split(r"\r+", line.rstrip("\r"))[-1] for line in lines]
    return "\n".join(ends[-KEPT:])
