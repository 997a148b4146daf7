"""Metrics on disk, as DVC hashes and shows them.

A stage's metrics files (`metrics` in dvc.yaml) hold the few figures by which runs are compared, so that `dvc metrics
show` fits a terminal; equal names stand in one column. What explains them goes to JSON beside them, an ordinary output.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_json(content: object, path: Path) -> None:
    """JSON for DVC to hash and a person to read: sorted, indented, one final line end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def figures(stage: str, paths: Iterable[str]) -> dict[str, float]:
    """The numbers of a stage's metrics files; a file's name goes before them where it is not the stage's."""
    found: dict[str, float] = {}
    for path in map(Path, paths):
        found |= numbers(read_json(path), "" if path.stem == stage else f"{path.stem}.")
    return found


def numbers(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested figures under dotted names, as DVC and MLflow show them; texts and lists left out."""
    flat: dict[str, float] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + name] = float(value)
    return flat
