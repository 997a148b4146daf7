"""What differs between two rebuilds, stage by stage: params, code, data, packages, hardware."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ruamel.yaml import YAML

from stages import lineage
from stages.history import StageRecord

KINDS = ("params", "code", "data", "packages", "hardware")
LISTED = 8  # differences of a kind that are listed one by one


@dataclass(frozen=True)
class StageDifference:
    """One stage of two rebuilds: the outputs that are not the same, and what went in that is not, by kind."""

    stage: str
    outputs: tuple[str, ...]
    causes: Mapping[str, tuple[str, ...]]


def stage(before: StageRecord, now: StageRecord, made: Collection[str]) -> StageDifference:
    """Compare a stage's two records; `made` are the paths that stages make, so that data is told from code."""
    inputs = list(changed(before.inputs, now.inputs))
    causes = {
        "params": tuple(told(plain(before.params), plain(now.params))),
        "code": tuple(path for path in inputs if not is_made(path, made)),
        "data": (
            *(path for path in inputs if is_made(path, made)),
            *(f"{path} (yours)" for path in changed(before.sources, now.sources)),
        ),
        "packages": tuple(told(before.packages, now.packages)),
        "hardware": tuple(told(before.hardware, now.hardware)),
    }
    outputs = tuple(changed(before.outputs, now.outputs))
    return StageDifference(before.name, outputs, {kind: found for kind, found in causes.items() if found})


def plain(params: Mapping[str, str]) -> dict[str, str]:
    """Params as MLflow keeps them, in one spelling: 1 and 1.0 are the same, and so are a tuple and a list."""
    yaml = YAML(typ="safe", pure=True)
    return {name: str(lineage.plain(yaml.load(text))) if text else "" for name, text in params.items()}


def is_made(path: str, made: Collection[str]) -> bool:
    """Whether a stage makes this path, or a folder that it is in."""
    return any(path == out or path.startswith(f"{out}/") for out in made)


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """The names whose values are not the same, or that only one side has."""
    return (name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name))


def told(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """A line for each name: `torch 2.12.0 → 2.13.0`."""
    for name in changed(before, now):
        yield f"{name} {before.get(name, '(none)')} → {now.get(name, '(none)')}"


def listed(items: Collection[str]) -> str:
    """Some of them by name, the rest as a count."""
    first = list(items)[:LISTED]
    rest = len(items) - len(first)
    return "; ".join(first) + (f"; and {rest} more" if rest else "")


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines with columns one below the other; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
