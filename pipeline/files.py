"""Files that are replaced whole: a kill in the middle leaves the old one or the new one, never half of either."""

import os
import tempfile
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write `text` to `path`, on disk before it takes the old file's place; permissions stay as they were."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
