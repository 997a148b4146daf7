"""Metrics on disk, as DVC hashes and shows them."""

import json
from pathlib import Path


def write_json(content: object, path: Path) -> None:
    """JSON for DVC to hash and a person to read: sorted, indented, one final line end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
