"""What the two training stages do with the records that their loops yield: print, send to MLflow, keep on disk."""

import csv
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tqdm import tqdm

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
        self._began: tuple[int, float] | None = None  # step and time of the first record of this process

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
        head = f"step {record.step:,} of {self.steps:,}: "
        if figures and (self.bar is None or "loss" not in figures):
            parts = [*described(figures), *self._time_left(record)]
            self._say(head + ", ".join(parts))
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

    def _time_left(self, record: Record) -> list[str]:
        """By the mean speed since this process began; nothing before that is known, and at the end."""
        now = time.monotonic()
        if self._began is None or record.resumed:
            self._began = (record.step, now)
        step, began = self._began
        if not step < record.step < self.steps:
            return []
        seconds = (now - began) / (record.step - step) * (self.steps - record.step)
        return [f"{tqdm.format_interval(seconds)} left"]

    def _say(self, line: str) -> None:
        if self.bar is None:
            print(line, flush=True)
        else:
            say(line)


# For people, in this order: what a figure is called, and its unit. All figures go to MLflow and to curve.csv.
READABLE = {
    "loss": ("loss", "{:.3f} nats"),
    "accuracy": ("chosen answer preferred", "{:.0%}"),
    "margin": ("margin", "{:.3f}"),
    "val_loss": ("validation loss", "{:.3f} nats"),
    "val_bits_per_byte": ("validation", "{:.4f} bits per byte"),
    "held_out_loss": ("held-out loss", "{:.3f}"),
    "held_out_accuracy": ("held-out pairs preferred", "{:.0%}"),
    "held_out_margin": ("held-out margin", "{:.3f}"),
    "lr": ("learning rate", "{:.2g}"),
    "grad_norm": ("gradient norm", "{:.2g}"),
    "skipped": ("skipped steps", "{:.0f}"),
    "tokens_per_second": ("", "{:,.0f} tokens/s"),
    "pairs_per_second": ("", "{:,.1f} pairs/s"),
    "fraction_of_peak": ("", "{:.0%} of the machine's peak"),
}


def described(figures: Mapping[str, float]) -> list[str]:
    """The figures that tell a person how a training goes, with names and units; all of them where none is known."""
    known = [f"{name} {form.format(figures[key])}".strip() for key, (name, form) in READABLE.items() if key in figures]
    return known or [f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items()]


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
