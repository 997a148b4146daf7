"""Files that are replaced whole: a kill in the middle leaves the old one or the new one, never half of either."""

import os
import tempfile
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write `text` to `path`, on disk before it takes the old file's place.

    Permissions stay as they were, a link stays one, and line ends are written as they stand in `text`.
    """
    target = path.resolve()
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(target.stat().st_mode & 0o7777 if target.exists() else 0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> str:
    """The text of a file with its line ends as they are."""
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()
