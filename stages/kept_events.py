"""Files of events that a store did not take, read back: a header, then an event a line, each an object of JSON."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from stages.mailbox import Event


class DamagedFileError(Exception):
    """A file of kept events that cannot be read; the message says why."""


class Header(BaseModel):
    """What the first line must say."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["start"]
    stage: str
    params: dict[str, Any]
    inputs: dict[str, str]
    fingerprint: str
    rebuild: str
    pid: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")]
    started: str
    uri: str
    time: int


class KeptEvent(BaseModel):
    """What every other line must say."""

    model_config = ConfigDict(extra="allow")
    kind: str
    time: int


def read_header(path: Path) -> dict[str, Any]:
    """The header alone. Raises DamagedFileError."""
    try:
        with path.open("rb") as file:
            return _header(file.readline())
    except OSError as error:
        raise DamagedFileError(f"cannot be read: {error.strerror}") from None


def read(path: Path) -> tuple[dict[str, Any], list[Event], int]:
    """The header and the events of a file, and how many damaged lines it has besides a last one that is cut.

    A file that ends without an end is closed: the machine went down as it was written. Raises DamagedFileError.
    """
    try:
        first, *rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DamagedFileError(f"cannot be read: {error.strerror}") from None
    start = _header(first)
    lines = [line for line in rest if line.strip()]
    events: list[Event] = []
    damaged = 0
    for number, line in enumerate(lines, 1):
        try:
            event = KeptEvent.model_validate_json(line).model_dump()
        except ValidationError:
            damaged += number < len(lines)
            continue
        if event["kind"] != "start":
            events.append(event)
    if not events or events[-1]["kind"] != "end":
        last = events[-1]["time"] if events else start["time"]
        events.append({"kind": "end", "time": last, "status": "KILLED", "error": ""})
    return start, events, damaged


def _header(line: bytes) -> dict[str, Any]:
    try:
        return Header.model_validate_json(line).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedFileError(f"its first line is no header: {where + ': ' if where else ''}{first['msg']}") from None
