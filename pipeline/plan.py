"""What a rebuild starts from: checked params, and the folder to itself."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import overrides, presets
from stages import params, schema

PARAMS = Path("params.yaml")


def text(preset: str | None, changes: Mapping[str, Any]) -> str | None:
    """The params.yaml that a rebuild is to use, checked; None for the one that is there. Raises WordmillError."""
    if preset is not None:
        return presets.from_preset(preset, changes)
    content = params.document(PARAMS)
    schema.check(content)
    return presets.changed(PARAMS.read_text(encoding="utf-8"), changes, "overrides") if changes else None


@contextlib.contextmanager
def prepared(preset: str | None, changes: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block params.yaml is what the rebuild is to use, and no other rebuild runs in this folder."""
    with overrides.sole_rebuild(), overrides.applied(text(preset, changes)):
        yield
