"""JSON from files that others wrote or that a disk may have damaged: a value, or one line that says what is wrong.

Python's reader takes more than JSON (NaN, Infinity, numbers beyond a float's range, halves of characters, a key twice),
and raises four kinds of exceptions. This one takes JSON only and raises WordmillError.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from llm.errors import WordmillError

LARGEST = 16_000_000  # bytes of a file, unless its reader knows better
DIGITS = 60  # of an integer; a 128-bit one has 39
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a character

T = TypeVar("T")


def read_json(path: Path, remedy: str = "", largest: int = LARGEST) -> Any:
    """The value in a file. Raises FileNotFoundError, and WordmillError with the path, the problem and `remedy`."""
    try:
        size = path.stat().st_size
        if size > largest:
            raise WordmillError(f"{path}: {size:,} bytes, more than the {largest:,} that such a file may have{remedy}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise WordmillError(f"{path}: cannot be read ({error.strerror}){remedy}") from None
    return parse_json(content, str(path), remedy)


def parse_json(content: bytes | str, source: str, remedy: str = "") -> Any:
    """The value that JSON text stands for. Raises WordmillError, which begins with `source` and ends with `remedy`."""
    try:
        text = content.decode() if isinstance(content, bytes) else content
        value = json.loads(
            text, parse_constant=_refuse, parse_int=_integer, parse_float=_float, object_pairs_hook=_object
        )
        if HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise WordmillError(f"{source}: not UTF-8 text (byte {error.start}){remedy}") from None
    except UnicodeEncodeError:
        raise WordmillError(f"{source}: a string holds half of a character (a lone surrogate){remedy}") from None
    except RecursionError:
        raise WordmillError(f"{source}: not valid JSON: nested too deeply{remedy}") from None
    except ValueError as error:
        raise WordmillError(f"{source}: not valid JSON: {error}{remedy}") from None
    return value


def check_json(value: Any, kind: type[T] | Any, source: str, remedy: str = "") -> T:
    """`value` as `kind`, a pydantic model or any type that pydantic knows. Raises WordmillError for the first mistake.

    No value is converted: the string "3" is no integer, and neither is true.
    """
    try:
        checked: T = TypeAdapter(kind).validate_python(value, strict=True)
        return checked
    except ValidationError as error:
        raise WordmillError(f"{source}: {first_problem(error)}{remedy}") from None


def first_problem(error: ValidationError) -> str:
    """The first mistake in one line: where it is, what is wrong, and the value that was found."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:60] for part in first["loc"])
    if first["type"] == "missing":
        return f"{where}: missing"
    found, place = quoted(first["input"]), f"{where}: " if where else ""
    if first["type"] == "literal_error":
        return f"{place}{found} is not supported, only {first['ctx']['expected']}"
    if first["type"] == "extra_forbidden":
        return f"{place}{found} is not supported"
    if first["type"] == "value_error":
        return place + str(first["ctx"]["error"])
    message = first["msg"].removeprefix("Input should be ")
    return f"{place}{found} is not what belongs there: {message[:1].lower()}{message[1:]}"


def quoted(value: Any) -> str:
    """The beginning of a value's `repr`, for messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is beyond the range of numbers")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {quoted(next(name for name in names if names.count(name) > 1))} stands there twice")
    return found
