"""What a path or a glob in params.yaml names: one reading for all who ask.

A glob names regular files, also through links. What else it matches and cannot be read as a file (a link to nothing, a
FIFO, a socket, a device) is left out and counted; folders are passed over. A pattern that is itself the name of
something names just that, whatever characters it holds.
"""

import glob
import re
import stat
from dataclasses import dataclass
from pathlib import Path

KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@dataclass(frozen=True)
class Matches:
    """`paths` in order; `left_out` are those that are no files, with what they are."""

    paths: list[Path]
    left_out: dict[Path, str]

    def left_out_line(self, pattern: str) -> str:
        """How many were left out, and one of them; empty where none was."""
        if not self.left_out:
            return ""
        path, kind = next(iter(self.left_out.items()))
        return f"{pattern}: {len(self.left_out)} that are no files are left out, such as {path}, {kind}"


def match(pattern: str) -> Matches:
    """What `pattern` names; without wildcards itself, even if nothing is there."""
    if Path(pattern).exists() or Path(pattern).is_symlink() or not re.search(r"[*?\[]", pattern):
        return Matches([Path(pattern)], {})
    # pathlib's own globbing takes no absolute pattern
    found = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    kinds = {path: no_file(path) for path in found if not path.is_dir()}
    return Matches(
        [path for path, kind in kinds.items() if not kind], {path: kind for path, kind in kinds.items() if kind}
    )


def no_file(path: Path) -> str:
    """What a path is that can be read neither as a file nor as a folder; empty for these, and where nothing is."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link to nothing" if path.is_symlink() else ""
    return KINDS.get(stat.S_IFMT(mode), "")
