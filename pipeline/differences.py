"""What changed between two rebuilds, and what it did to the metrics."""

import math
from collections.abc import Iterator

from ruamel.yaml import YAML

from pipeline import compare
from pipeline.status import differing
from stages.history import Rebuild


def lines(before: Rebuild, now: Rebuild) -> Iterator[str]:
    """For people: both runs, then what went in by kind, then the stages' outputs, then the metrics as a table."""
    for mark, run in (("A", before), ("B", now)):
        commit = (run.commit or "no commit")[:12]
        yield f"{mark}  {run.run_id[:8]}  {run.name}  {run.status}  {commit}{' and changes' if run.patch else ''}"
    yield ""
    both = [name for name in now.stages if name in before.stages]
    made = {path for run in (before, now) for record in run.stages.values() for path in record.outputs}
    found = {name: compare.stage(before.stages[name], now.stages[name], made) for name in both}

    def caused(kind: str) -> dict[str, list[str]]:
        """Every difference of a kind, with the stages that it is in."""
        stages: dict[str, list[str]] = {}
        for name, difference in found.items():
            for item in difference.causes.get(kind, ()):
                stages.setdefault(item, []).append(name)
        return stages

    yield from _section("params", list(params(before, now)))
    yield from _section("code", _with_stages(caused("code"), len(both)))
    yield from _section("data", _with_stages(caused("data"), len(both)))
    yield from _section("packages", _with_stages(caused("packages"), len(both)))
    yield from _section("hardware", _with_stages(caused("hardware"), len(both)))
    outputs = [f"{name}: {', '.join(difference.outputs)}" for name, difference in found.items() if difference.outputs]
    for name in dict.fromkeys([*before.stages, *now.stages]):
        if name not in both:
            outputs.append(f"{name}: only {'A' if name in before.stages else 'B'} has it")
    yield from _section("outputs", outputs)
    yield from _metrics(before, now)


def params(before: Rebuild, now: Rebuild) -> Iterator[str]:
    """Every value of params.yaml that differs."""
    yaml = YAML(typ="safe", pure=True)
    first, second = yaml.load(before.params) or {}, yaml.load(now.params) or {}
    for section in dict.fromkeys([*first, *second]):
        yield from differing(section, first.get(section, {}), second.get(section, {}))


def _section(title: str, items: list[str]) -> Iterator[str]:
    if not items:
        yield f"{title}: the same"
        return
    yield f"{title}:"
    for item in items:
        yield f"  {item}"


def _with_stages(items: dict[str, list[str]], all_: int) -> list[str]:
    return [f"{item}  ({'all stages' if len(names) == all_ else ', '.join(names)})" for item, names in items.items()]


def _metrics(before: Rebuild, now: Rebuild) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("metric", "A", "B", "B - A")]
    same = 0
    for name in dict.fromkeys([*before.metrics, *now.metrics]):
        a, b = before.metrics.get(name), now.metrics.get(name)
        if a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b)):
            same += 1
        else:
            rows.append((name, _number(a), _number(b), f"{b - a:+.6g}" if a is not None and b is not None else ""))
    yield ""
    if len(rows) > 1:
        yield from compare.table(rows)
    yield f"metrics: {len(rows) - 1} differ, {same} are the same"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
