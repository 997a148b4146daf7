"""What the two training stages do with the records that their loops yield: print, send to MLflow, keep on disk."""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from llm.progress import Progress, progress, say
from llm.training_state import Record
from stages.metrics import write_json
from stages.stage import Stage


class Teller:
    """Passes records on to MLflow and to whoever watches: on a terminal a bar, with validation and samples above it.

        with Teller(stage, steps) as tell:
            for record in pretrain(...):
                tell(record)

    In a log every record is a line, as there is no bar to look at.
    """

    def __init__(self, stage: Stage, steps: int) -> None:
        self.stage = stage
        self.steps = steps
        self.bar: Progress[None] | None = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty() and sys.stderr.isatty():
            self.bar = progress(total=self.steps, unit="steps", label=self.stage.name)
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, record: Record) -> None:
        """Tell one record."""
        figures = record.values | record.machine
        if figures:
            self.stage.metrics(figures, step=record.step)
        head = f"step {record.step}/{self.steps}  "
        if figures and (self.bar is None or "loss" not in figures):
            self._say(head + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        if record.text:
            self.stage.text(f"samples/step-{record.step:08d}.txt", record.text)
            self._say(f"{head}sample:\n{record.text}\n")
        if self.bar is not None:
            if "loss" in figures:
                self.bar.note(_note(figures))
            if record.resumed:
                self.bar.start_at(record.step)
            else:
                self.bar.update(record.step - self.bar.done)

    def _say(self, line: str) -> None:
        if self.bar is None:
            print(line, flush=True)
        else:
            say(line)


def _note(figures: Mapping[str, float]) -> str:
    """What stands beside the bar."""
    parts = [f"loss {figures['loss']:.3f}"]
    if "tokens_per_second" in figures:
        parts.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
    if "fraction_of_peak" in figures:
        parts.append(f"{figures['fraction_of_peak']:.0%} of peak")
    return ", ".join(parts)


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
