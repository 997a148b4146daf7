"""How far a long loop has come: a bar on a terminal, a plain line now and then in a log.

    with progress(total=size, unit="B", label="books.txt") as bar:
        for chunk in chunks:
            bar.update(len(chunk))

    for step in progress(range(steps), unit="steps", label="pretrain"):
        ...

Everything goes to standard error, so a command's own output stays clean. A log gets a line every ten seconds and one
at the end; the bar itself is tqdm's.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from operator import length_hint
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from tqdm import tqdm

from llm.errors import printable

LOG_SECONDS = 10.0  # between two lines in a log
T = TypeVar("T")


class Progress(Generic[T]):
    """Counts `update`s against `total`; iterating over it counts the items."""

    def __init__(self, items: Iterable[T] | None, total: int | None, unit: str, label: str) -> None:
        self._items = items
        self.total = total
        self.unit = unit
        self.label = printable(label)
        self.done = 0
        self._note = ""
        self._began = self._said = time.monotonic()
        self._initial = 0
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                desc=self.label,
                unit=unit if unit == "B" else f" {unit}",
                unit_scale=True,
                dynamic_ncols=True,
            )

    def update(self, n: int = 1) -> None:
        """Count `n` more."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._said >= LOG_SECONDS:
            self._line()

    def start_at(self, done: int, total: int | None = None) -> None:
        """What was done before this run: part of the total (given anew if it is known only now), not of the speed."""
        self.total = total or self.total
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.initial = done
        self.update(done - self.done)
        self._initial = done

    def note(self, text: str) -> None:
        """Show `text` beside the figures, such as the loss or the file at hand."""
        self._note = printable(text)
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)

    def close(self) -> None:
        """End the bar, or write the last line."""
        if self._bar is not None:
            self._bar.close()
        else:
            self._line()

    def _line(self) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._began
        rate = (self.done - self._initial) / seconds if seconds > 0 else 0.0
        parts = [_size(self.done, self.unit)]
        if self.total:
            done = parts[0] if self.unit == "B" else f"{self.done:,}"
            parts = [f"{done} of {_size(self.total, self.unit)}"]
        parts.append(f"{_size(rate, self.unit)}/s")
        if self.total and rate and self.done < self.total:
            parts.append(f"{tqdm.format_interval((self.total - self.done) / rate)} left")
        if self._note:
            parts.append(self._note)
        print(f"{self.label}: {', '.join(parts)}", file=sys.stderr, flush=True)

    def __iter__(self) -> Iterator[T]:
        if self._items is None:
            raise TypeError("made without items: call update() instead of iterating")
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None or self._bar is not None:
            self.close()  # in a log, the last line after a failure is the failure's own


@overload
def progress(items: None = None, *, total: int | None = ..., unit: str = ..., label: str = ...) -> Progress[None]: ...
@overload
def progress(items: Iterable[T], *, total: int | None = ..., unit: str = ..., label: str = ...) -> Progress[T]: ...
def progress(
    items: Iterable[Any] | None = None, *, total: int | None = None, unit: str = "steps", label: str = ""
) -> Progress[Any]:
    """A `Progress` over `items`, or to be updated by hand. `unit` "B" is shown as kB, MB, GB."""
    if total is None:
        total = length_hint(items) or None
    return Progress(items, total, unit, label)


def say(text: str) -> None:
    """A line for the user, or several, above a bar if there is one."""
    tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stderr)


def _size(number: float, unit: str) -> str:
    if unit == "B":
        return tqdm.format_sizeof(number, "B")
    return f"{number:,.0f} {unit}" if number >= 10 or number == int(number) else f"{number:.2f} {unit}"
