"""Ranges of settings that every configuration checks: seeds, sizes that no machine holds, finite numbers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from llm.errors import ConfigError

LARGEST_SEED = 2**63 - 1  # torch's and NumPy's generators take such seeds, and a signed 64-bit integer holds them
Range = tuple[float, float]
SEED: Range = (0, LARGEST_SEED)


def check_limits(config: Any, limits: Mapping[str, Range]) -> None:
    """Raises ConfigError for a float of the dataclass `config` that is not finite, and for a field out of its range.

    Both ends of a range are allowed values.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(field.name, f"{value} is not a finite number")
    for name, (low, high) in limits.items():
        if not low <= getattr(config, name) <= high:
            raise ConfigError(name, f"{getattr(config, name)} is not between {low:,} and {high:,}")


def divisors(number: int) -> list[int]:
    """All divisors of a positive number, sorted, in time of its square root."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def nearest(wanted: int, allowed: Iterable[int]) -> list[int]:
    """The next smaller and the next larger of the allowed values, where there are such."""
    values = sorted(allowed)
    return [n for n in values if n < wanted][-1:] + [n for n in values if n > wanted][:1]
