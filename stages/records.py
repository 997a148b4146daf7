"""What the two training stages do with the records that their loops yield: print, send to MLflow, keep on disk."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm.pretrain import Record
from stages.metrics import write_json
from stages.stage import Stage


def tell(stage: Stage, record: Record, steps: int) -> None:
    """Print one record as a line and pass its figures on to MLflow."""
    figures = record.values | record.machine
    stage.metrics(figures, step=record.step)
    shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    if shown:
        print(f"step {record.step}/{steps}  {shown}", flush=True)
    if record.text:
        print(f"step {record.step}/{steps}  sample:\n{record.text}\n", flush=True)


def write_curve(records: Sequence[Record], path: Path) -> None:
    """One row a step, one column a figure, empty where a step has none; only figures that every run repeats."""
    rows: dict[int, dict[str, float]] = {}
    for record in records:
        if record.values:
            rows.setdefault(record.step, {}).update(record.values)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *names], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in sorted(rows.items()))


def summary(records: Sequence[Record], path: Path, extra: Mapping[str, float]) -> None:
    """The last value of every figure, and `extra`, as a JSON of metrics."""
    last: dict[str, float] = {"step": records[-1].step}
    for record in records:
        last |= record.values
    write_json({**last, **extra}, path)
