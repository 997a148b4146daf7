"""A grid of params: every combination rebuilt in a worktree of its own, unchanged stages once, one table at the end.

All worktrees share this checkout's DVC cache, so a stage whose params and inputs two points have in common runs for the
first and comes from the run cache for the others. They hold this checkout's code, uncommitted changes included, and go
away when their figures are read: what a point has made stays in the cache, where `dvc repro` finds it again.

The points run one after the other: they share the processor or the GPU, and a stage that several of them need is there
when the second comes to it. An interrupted sweep is given again: what it has finished comes from the cache.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from llm.errors import WordmillError
from pipeline import apart, compare, dvc, presets
from pipeline.files import read
from pipeline.git import check_own_repository
from stages import delivery, lineage, params, provenance, schema, sweep_run
from stages.metrics import figures
from stages.tracking_uri import environment as tracking_environment
from stages.uncommitted import uncommitted

FOLDER = Path("runs/sweep")
LIMIT = 1000  # points: more is a slip of the hand
COLUMNS = (
    "evaluate.dpo.bits_per_byte",
    "evaluate.dpo.sensible",
    "evaluate.dpo.preferred",
    "pretrain.val_bits_per_byte",
)


@dataclass(frozen=True)
class Point:
    """One combination: its values by dotted name, and the text of the params.yaml that it is."""

    values: Mapping[str, Any]
    params: str


@dataclass
class Outcome:
    """What became of a point: its figures by `<stage>.<name>`, the stages that really ran, or the error."""

    point: Point
    metrics: dict[str, float] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    error: str | None = None


def points(settings: Sequence[str]) -> list[Point]:
    """Every combination of `section.key=[a, b]` settings, each checked against the schema. Raises WordmillError."""
    if not settings:
        raise WordmillError("give params with lists of values, as in 'pretrain.lr=[1e-4, 3e-4]'")
    axes = presets.parsed(list(settings))
    if len(axes) < len(settings):
        raise WordmillError("a param is given twice; put all its values in one list")
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise WordmillError(f"{name}={values}: give a list of values, as in 'pretrain.lr=[1e-4, 3e-4]'")
    schema.check(params.document())
    text = read(params.PARAMS)
    grid = list(itertools.product(*axes.values()))
    if len(grid) > LIMIT:
        raise WordmillError(f"{len(grid)} combinations are more than {LIMIT}; leave some values out")
    chosen = [dict(zip(axes, values, strict=True)) for values in grid]
    return [Point(values, presets.changed(text, values, named(values))) for values in chosen]


def sweep(grid: Sequence[Point], tell: Callable[[str], None], run_one: "RunOne | None" = None) -> list[Outcome]:
    """Rebuild every point, in order. `run_one` stands in for `rebuild` below, as a Prefect subflow does."""
    axes = {name: list(dict.fromkeys(map(_key, (point.values[name] for point in grid)))) for name in grid[0].values}
    if provenance.commit() is None:
        raise WordmillError("a sweep needs a git repository with a commit")
    check_own_repository()
    parent = sweep_run.begin(axes)
    environment = {
        **tracking_environment(),
        "WORDMILL_SWEEP": parent or "",
        "DVC_ROOT": "",
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    status = "KILLED"
    try:
        for number, point in enumerate(grid, 1):
            tell(f"{number} of {len(grid)}: {named(point.values)}")
            one = {**environment, "WORDMILL_REBUILD": f"sweep-{uuid4()}"}
            outcomes.append((run_one or rebuild)(point, FOLDER / str(number), one, tell))
        status = "FAILED" if any(outcome.error for outcome in outcomes) else "FINISHED"
    finally:
        if parent:
            sweep_run.end(parent, table(outcomes, every=True), status)
    return outcomes


def rebuild(point: Point, folder: Path, environment: Mapping[str, str], tell: Callable[[str], None]) -> Outcome:
    """Bring one point up to date in a worktree at `folder`, and read its figures."""
    outcome = Outcome(point)
    commit, (patch, left_out) = provenance.commit(), uncommitted()
    assert commit

    def listen(line: str) -> None:
        if line.startswith("Running stage '"):
            outcome.ran.append(line.split("'")[1])
            tell(f"  {outcome.ran[-1]} runs")

    apart.make(folder, commit, patch, point.params, left_out, cached=True)
    try:
        dvc.repro(folder, [], listen, environment)
        outcome.metrics = _metrics(folder)
    except dvc.StageFailedError as error:
        outcome.error = str(error)
    finally:
        delivery.take_over(folder, Path())
        apart.remove(folder)
    return outcome


RunOne = Callable[[Point, Path, Mapping[str, str], Callable[[str], None]], Outcome]


def table(outcomes: Sequence[Outcome], every: bool = False) -> list[tuple[str, ...]]:
    """The points as rows below a heading: values, main figures (with `every`, all that differ, too), what ran."""
    if not outcomes:
        return [("no point",)]
    axes = list(outcomes[0].point.values)
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.metrics))
    differing = [name for name in names if len({outcome.metrics.get(name) for outcome in outcomes}) > 1]
    main = [name for name in COLUMNS if name in names]
    shown = list(dict.fromkeys([*main, *differing])) if every else main or differing[:4]
    rows = [(*axes, *shown, "ran")]
    for outcome in outcomes:
        cells = [str(outcome.point.values[name]) for name in axes]
        for name in shown:
            cells.append(f"{outcome.metrics[name]:.6g}" if name in outcome.metrics else "")
        rows.append((*cells, outcome.error or ", ".join(outcome.ran) or "nothing: all from the cache"))
    return rows


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """The table, for people."""
    return list(compare.table(table(outcomes)))


def _metrics(folder: Path) -> dict[str, float]:
    """The figures of every metrics file, as `<stage>.<name>`."""
    found: dict[str, float] = {}
    for stage in lineage.declared(folder / "dvc.yaml"):
        of_stage = figures(stage.name, [str(folder / path) for path in stage.metrics])
        found |= {f"{stage.name}.{name}": value for name, value in of_stage.items()}
    return found


def named(values: Mapping[str, Any]) -> str:
    """A point in a few words."""
    return " ".join(f"{name}={value}" for name, value in values.items())


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
