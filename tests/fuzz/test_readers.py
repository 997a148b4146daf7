"""Every reader of foreign files: damaged ones are accepted or refused in one line, in bounded time and memory."""

from collections.abc import Iterator

import pytest

from tests.fuzz.readers import READERS
from tests.fuzz.runner import Fuzzer

INPUTS = 200  # of each reader, a third for YAML with its slow parser; `python -m benchmarks.fuzz` tries more
LARGEST = 256_000_000  # bytes beside what the process has: the valid inputs are below 1 MB


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[Fuzzer]:
    with Fuzzer("tests.fuzz.readers") as fuzzer:
        yield fuzzer


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_accepted_or_refused_in_one_line(fuzzer: Fuzzer, name: str) -> None:
    count = INPUTS // 3 if name in ("params.yaml", "presets") else INPUTS
    result = fuzzer.run(name, count)
    assert result.mutations == count
    again = f'python -m tests.fuzz.runner tests.fuzz.readers "{name}" --count 1 --first'
    assert not result.bad, "\n".join(f"{again} {bad.index}: {bad.mutation}\n{bad.detail}" for bad in result.bad[:3])
    assert result.memory < LARGEST
    if name != "checkpoints" and "checksums" not in name:  # there an older whole one, or none, is taken
        assert len(result.messages) >= 2  # the mutations reach more than one check
