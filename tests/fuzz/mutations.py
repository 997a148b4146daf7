"""Damaged copies of a valid file, for the tests of readers.

`mutate` makes one change, or a few, to the content of a file. The change depends on the random generator alone, so a
seed gives the same file again. Forms know the structure of a file, so that a damaged copy gets past the first check of
its reader:

- `bytes`: bits flipped, bytes cut, inserted and repeated, integers of 4 and 8 bytes replaced by extreme ones.
- `json`, `jsonl`: values of the wrong type, null, negative and huge numbers, NaN, deep nesting, keys that are missing,
  doubled or new, numbers of 5,000 digits.
- `yaml`: the same, and what only YAML has: aliases, tags, tabs, several documents.
- `safetensors`: the length of the header, its JSON, offsets, dtypes and shapes, data that is cut or too long.
- `text`: lines cut, repeated and swapped, bytes that are not UTF-8, absurd strings.
"""

import json
import random
import struct
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

Form = Literal["bytes", "json", "jsonl", "yaml", "safetensors", "text"]
FORMS: tuple[Form, ...] = get_args(Form)


class Mutation(NamedTuple):
    name: str  # what was done
    content: bytes


class Raw(str):
    """JSON text that is written as it stands."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object as a list, so that a key can stand there twice."""


DEEP = 100_000
NUMBERS = ("0", "1", "-1", "2", "3", "7", "255", "256", "65536", "2147483648", "-2147483649", "4294967296", "1e3")
HUGE_NUMBERS = (
    "1000000000000",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "1e308",
    "1e-320",
)
ABSURD = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5_000, "-" + "9" * 5_000, "0." + "3" * 5_000, "-0", "0.5")
NESTED = ("[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[" * 200 + "]" * 200)
PLAIN = ("null", "true", "false", "[]", "{}", '""', '"x"', "[1, 2]", '["x"]', '{"x": 1}', "[null]", "[[[]]]")
STRINGS = (
    '"\\ud800"',
    '"\\u0000"',
    '"\\u001b[2J\\u001b]0;title\\u0007"',
    '"../../etc/passwd"',
    '"/etc/passwd"',
    '"line\\nline"',
    '"\\u202e\\u2028"',
    '"' + "a" * 100_000 + '"',
    '"-1"',
    '"1e999"',
    '"<|endoftext|>"',
    '"__proto__"',
    '" "',
    '"\U0001f600"',
)
VALUES = (PLAIN, PLAIN, NUMBERS, NUMBERS, HUGE_NUMBERS, ABSURD, STRINGS, NESTED)
INTEGERS = (0, 1, -1, 2, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F4", "I64", "I32", "I8", "U8", "BOOL", "C64", "X9", "", "f32")
YAML_VALUES = (
    "*nowhere",
    "&a [*a]",
    "!!python/object/apply:os.system [true]",
    "!!binary x",
    "!unknown 1",
    "2026-12-01",
    ".inf",
    ".nan",
    "0x10",
    "0o17",
    "1_000",
    "1:30",
    "~",
    "|\n",
    "'",
    '"',
    "[",
    "{a: ",
    "\t1",
    "yes",
    "? x",
    "<<: *a",
    "\ud7ff",
    "@x",
    "%TAG",
)


def mutate(content: bytes, form: Form, random: random.Random) -> Mutation:
    """One damaged copy of `content`."""
    if not content:
        return Mutation("bytes into nothing", random.randbytes(random.choice((1, 8, 300))))
    own, share = _OF[form]
    return own(content, random) if random.random() < share else _bytes(content, random)


def _bytes(content: bytes, random: random.Random) -> Mutation:
    name, change = random.choice(BYTE_CHANGES)
    for _ in range(random.choice((1, 1, 1, 4))):
        content = change(content, random)
    return Mutation(f"bytes: {name}", content)


def _flip(content: bytes, random: random.Random) -> bytes:
    if not content:
        return content
    at = random.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]


def _cut(content: bytes, random: random.Random) -> bytes:
    begin, end = _stretch(content, random)
    return content[:begin] + content[end:]


def _cut_end(content: bytes, random: random.Random) -> bytes:
    return content[: random.choice((0, 1, len(content) // 2, len(content) - 1, random.randrange(len(content) + 1)))]


def _insert(content: bytes, random: random.Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.randbytes(random.choice((1, 2, 16, 1000))) + content[at:]


def _duplicate(content: bytes, random: random.Random) -> bytes:
    begin, end = _stretch(content, random)
    return content[:end] + content[begin:end] * random.choice((1, 1, 20)) + content[end:]


def _zero(content: bytes, random: random.Random) -> bytes:
    begin, end = _stretch(content, random)
    return content[:begin] + random.choice((b"\0", b"\xff")) * (end - begin) + content[end:]


def _integer(content: bytes, random: random.Random) -> bytes:
    """An aligned little-endian integer, mostly near the beginning, where headers are."""
    width = random.choice((4, 8))
    size = min(len(content), random.choice((128, len(content))))
    at = random.randrange(max(1, size)) // width * width
    number = random.choice(INTEGERS) % (1 << 8 * width)
    return content[:at] + number.to_bytes(width, "little") + content[at + width :]


def _stretch(content: bytes, random: random.Random) -> tuple[int, int]:
    begin = random.randrange(len(content) + 1)
    return begin, min(len(content), begin + random.choice((1, 2, 8, 64, 1000)))


BYTE_CHANGES: tuple[tuple[str, Callable[[bytes, random.Random], bytes]], ...] = (
    ("flip", _flip),
    ("cut", _cut),
    ("cut the end", _cut_end),
    ("insert", _insert),
    ("duplicate", _duplicate),
    ("zeros or ones", _zero),
    ("integer", _integer),
)


def _json(content: bytes, random: random.Random) -> Mutation:
    tree = json.loads(content, object_pairs_hook=Pairs)
    name, tree = _change(tree, random)
    return Mutation(f"json: {name}", written(tree).encode("utf-8", "surrogatepass"))


def _jsonl(content: bytes, random: random.Random) -> Mutation:
    lines = content.splitlines()
    at = random.randrange(len(lines))
    change = _json(lines[at], random) if lines[at].strip() else _bytes(lines[at] or b"\n", random)
    lines[at] = change.content
    return Mutation(f"line {at + 1}: {change.name}", b"\n".join(lines) + b"\n")


def _change(tree: Any, random: random.Random) -> tuple[str, Any]:
    """One value somewhere in the tree changed. The tree is changed in place, unless it is replaced as a whole."""
    places = _walk(tree, random)
    if not places:
        value = _value(random)
        return f"everything is {value[:40]}", Raw(value)
    above, at = random.choice(places)
    where = above[at][0] if isinstance(above, Pairs) else str(at)
    kind = random.choice(("value", "value", "value", "value", "missing", "doubled", "extra", "renamed", "swapped"))
    if kind == "value":
        value = _value(random)
        above[at] = (where, Raw(value)) if isinstance(above, Pairs) else Raw(value)
        return f"{where[:40]} is {value[:40]}", tree
    if kind == "missing":
        del above[at]
    elif kind == "doubled":
        value = _value(random)
        above.append((where, Raw(value)) if isinstance(above, Pairs) else above[at])
    elif kind == "extra":
        value = Raw(_value(random))
        above.insert(at, (json.loads(random.choice(STRINGS)), value) if isinstance(above, Pairs) else value)
    elif kind == "renamed" and isinstance(above, Pairs):
        above[at] = (json.loads(random.choice(STRINGS)), above[at][1])
    else:
        other = random.randrange(len(above))
        if isinstance(above, Pairs):
            (name, value), (name_there, value_there) = above[at], above[other]
            above[at], above[other] = (name, value_there), (name_there, value)
        else:
            above[at], above[other] = above[other], above[at]
    return f"{where[:40]} {kind}", tree


def _walk(tree: Any, random: random.Random) -> list[tuple[Any, int]]:
    """The places (container, position) on one random way from the root to a leaf."""
    places = []
    while isinstance(tree, list) and tree:
        at = random.randrange(len(tree))
        places.append((tree, at))
        tree = tree[at][1] if isinstance(tree, Pairs) else tree[at]
    return places


def _value(random: random.Random) -> str:
    return random.choice(random.choice(VALUES))


def written(tree: Any) -> str:
    """JSON text of a tree of `Pairs`, lists, plain values and `Raw` text."""
    if isinstance(tree, Raw):
        return tree
    if isinstance(tree, Pairs):
        return "{" + ", ".join(f"{json.dumps(name)}: {written(value)}" for name, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(written, tree)) + "]"
    return json.dumps(tree)


def _yaml(content: bytes, random: random.Random) -> Mutation:
    """The value of one line `key: value` changed, or a line moved, doubled, indented or taken out."""
    lines = content.decode().splitlines()
    keyed = [i for i, line in enumerate(lines) if ":" in line and not line.lstrip().startswith("#")]
    at = random.choice(keyed) if keyed else 0
    key = lines[at].partition(":")[0]
    kind = random.choice(("json", "json", "json", "yaml", "yaml", "missing", "doubled", "indented", "tab", "document"))
    if kind == "json":
        lines[at] = f"{key}: {_value(random)}"
    elif kind == "yaml":
        lines[at] = f"{key}: {random.choice(YAML_VALUES)}"
    elif kind == "missing":
        del lines[at]
    elif kind == "doubled":
        lines.insert(at, lines[at])
    elif kind == "indented":
        lines[at] = " " * random.choice((1, 2, 3, 4)) + lines[at]
    elif kind == "tab":
        lines[at] = "\t" + lines[at].lstrip()
    else:
        lines.insert(at, random.choice(("---", "...", "%YAML 1.1", "\ufeff", "\0", "&a", "<<: *a", "- x", "x")))
    return Mutation(f"yaml: {key.strip()[:40]} {kind}", ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))


def _safetensors(content: bytes, random: random.Random) -> Mutation:
    size = struct.unpack_from("<Q", content)[0]
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = random.choice(
        ("length", "header", "header", "offsets", "dtype", "shape", "data cut", "data longer", "values")
    )
    if kind == "length":
        number = random.choice((*INTEGERS, size + 1, size - 1, size + 8, len(content), 100_000_001)) % 2**64
        return Mutation(f"safetensors: header of {number}", struct.pack("<Q", number) + content[8:])
    if kind == "header":
        name, header = _json(header, random)
        return Mutation(f"safetensors: {name}", struct.pack("<Q", len(header)) + header + data)
    if kind == "data cut":
        return Mutation("safetensors: data cut", content[: -random.choice((1, 4, len(data) // 2 or 1))])
    if kind == "data longer":
        return Mutation("safetensors: data longer", content + bytes(random.choice((1, 4, 10_000))))
    if kind == "values":  # also NaN and infinity
        return Mutation("safetensors: values", content[: 8 + size] + _zero(data, random))
    entries = json.loads(header)
    name = random.choice([key for key in entries if key != "__metadata__"])
    entry = entries[name]
    if kind == "dtype":
        entry["dtype"] = random.choice(DTYPES)
    elif kind == "shape":
        numbers = (*(abs(number) for number in INTEGERS), 3)
        entry["shape"] = [random.choice(numbers) for _ in range(random.choice((0, 1, 2, 3, 70)))]
    else:
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = random.choice(
            ([end, begin], [begin, begin], [begin + 1, end + 1], [begin, 2**63], [0, len(data)], [-1, end], [begin])
        )
    header = json.dumps(entries).encode()
    return Mutation(f"safetensors: {name} {kind}", struct.pack("<Q", len(header)) + header + data)


def _text(content: bytes, random: random.Random) -> Mutation:
    lines = content.splitlines(keepends=True)
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    kind = random.choice(("missing", "doubled", "swapped", "shortened", "value", "not UTF-8", "long"))
    if kind == "missing":
        del lines[at]
    elif kind == "doubled":
        lines.insert(at, lines[other])
    elif kind == "swapped":
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == "shortened":
        lines[at] = lines[at][: random.randrange(len(lines[at]))]
    elif kind == "value":
        lines[at] = _value(random).encode("utf-8", "surrogatepass") + b"\n"
    elif kind == "not UTF-8":
        lines[at] = random.choice((b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf")) + lines[at]
    else:
        lines[at] = lines[at] * random.choice((100, 10_000))
    return Mutation(f"text: line {at + 1} {kind}", b"".join(lines))


# How each form is changed, and the share of its copies that are changed so; the others are changed byte by byte.
_OF: dict[Form, tuple[Callable[[bytes, random.Random], Mutation], float]] = {
    "bytes": (_bytes, 1.0),
    "json": (_json, 0.85),
    "jsonl": (_jsonl, 0.8),
    "yaml": (_yaml, 0.85),
    "safetensors": (_safetensors, 0.8),
    "text": (_text, 0.6),
}
