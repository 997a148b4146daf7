"""Readers with one fault each, for the test of the fuzzer itself."""

import os
import time
from pathlib import Path

from llm.errors import WordmillError
from tests.fuzz.runner import Reader

calls: list[Path] = []


def write(at: Path) -> None:
    (at / "file").write_text('{"number": 1}')


def damaged(at: Path) -> bool:
    """The first call is the one with the undamaged file."""
    calls.append(at)
    return len(calls) > 1


def clean(at: Path) -> None:
    if damaged(at):
        raise WordmillError("file: damaged; write it again")


def mute(at: Path) -> None:
    if damaged(at):
        raise WordmillError("")


def unexpected(at: Path) -> None:
    if damaged(at):
        raise KeyError("number")


def killed(at: Path) -> None:
    if damaged(at):
        os.abort()


def endless(at: Path) -> None:
    while damaged(at):
        pass


def deaf(at: Path) -> None:
    """No processor time, and no answer."""
    while damaged(at):
        time.sleep(0.05)


def greedy(at: Path) -> None:
    if damaged(at):
        bytearray(1 << 40)


READERS = {
    function.__name__: Reader(write, function, {"file": "json"})
    for function in (clean, mute, unexpected, killed, endless, deaf, greedy)
}
