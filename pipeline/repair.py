"""Repairs what a kill leaves half written of DVC's own files, before DVC is started again.

DVC overwrites two files in place, and refuses to start where a kill has cut one of them:

- `.dvc/tmp/rwlock`, the list of who reads and writes what. Nobody does while no DVC runs here, so it is removed. The
  same goes for entries of processes that are no more, whose number another program has now;
- `dvc.lock`. The last whole one comes back: the copy that a stage keeps when it begins (`stages.lineage.keep_lock`),
  or the commit's. What DVC had not recorded yet it finds in its run cache. The cut file is kept in `runs/`.

Nothing is touched while a DVC process runs in this folder, and a dvc.lock with the marks of a merge is the user's.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llm.errors import WordmillError
from pipeline.files import replace
from pipeline.git import git
from stages.lineage import KEPT_LOCK, LOCK

RWLOCK = Path(".dvc/tmp/rwlock")
CUT = Path("runs/dvc.lock.cut")
MERGE_MARKS = ("<<<<<<<", "=======", ">>>>>>>")


def repair(folder: Path = Path(), tell: Callable[[str], None] = lambda line: print(line, flush=True)) -> None:
    """Make DVC's files in the checkout `folder` readable again; a line for each that was not."""
    rwlock, lock = _stale_rwlock(folder), _cut_lock(folder)
    if not (rwlock or lock) or _dvc_runs(folder):
        return
    if rwlock:
        _remove_rwlock(folder, tell)
    if lock:
        _restore_lock(folder, tell)


def _stale_rwlock(folder: Path) -> bool:
    """Whether DVC could not read its list, or would wait for a process that is not DVC."""
    try:
        content = json.loads((folder / RWLOCK).read_bytes())
        readers = [info for infos in content.get("read", {}).values() for info in infos]
        pids = [int(info["pid"]) for info in [*readers, *content.get("write", {}).values()]]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return True
    return any(psutil.pid_exists(pid) and not _is_dvc(pid) for pid in pids)


def _remove_rwlock(folder: Path, tell: Callable[[str], None]) -> None:
    from dvc.lock import LockError, make_lock

    with contextlib.suppress(LockError), make_lock(str(folder / f"{RWLOCK}.lock")):  # DVC's own, while it writes
        (folder / RWLOCK).unlink(missing_ok=True)
        tell(f"{RWLOCK}: a killed DVC has left it unreadable; removed, since no DVC runs here")


def _cut_lock(folder: Path) -> bool:
    """Whether DVC could not read dvc.lock, and not because of a merge."""
    try:
        text = (folder / LOCK).read_bytes().decode(errors="replace")
    except OSError:
        return False
    merging = any(line.startswith(MERGE_MARKS) for line in text.splitlines())
    return not merging and not is_whole(text)


def is_whole(text: str) -> bool:
    """Whether this text of a dvc.lock is one that DVC reads."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        content: Any = YAML(typ="safe").load(text)
        COMPILED_LOCKFILE_SCHEMA(content)
    except (YAMLError, Invalid):
        return False
    return bool(content)


def _restore_lock(folder: Path, tell: Callable[[str], None]) -> None:
    cut = (folder / LOCK).read_bytes()
    for origin, text in _copies(folder):
        if text and not is_whole(text):
            continue
        (folder / CUT).parent.mkdir(exist_ok=True)
        (folder / CUT).write_bytes(cut)
        if text:
            replace(folder / LOCK, text)
        else:
            (folder / LOCK).unlink()
        tell(f"{LOCK}: a killed DVC has left it unreadable; {origin}; the rest is found in DVC's cache (was: {CUT})")
        return


def _copies(folder: Path) -> "list[tuple[str, str]]":
    """Where a whole dvc.lock may be, the best first; at last none at all."""
    found = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found.append(("the one of the last stage's beginning is back", (folder / KEPT_LOCK).read_text("utf-8")))
    with contextlib.suppress(WordmillError):
        found.append(("the commit's is back", git("show", f"HEAD:./{LOCK}", cwd=folder)))
    return [*found, ("removed", "")]


def _dvc_runs(folder: Path) -> bool:
    """Whether some DVC process other than this one works in the folder."""
    root = folder.resolve()
    for process in psutil.process_iter(["pid", "cwd"]):
        cwd, pid = process.info["cwd"], process.info["pid"]
        if pid != os.getpid() and cwd and Path(cwd).is_relative_to(root) and _is_dvc(pid):
            return True
    return False


def _is_dvc(pid: int) -> bool:
    """Whether a process is DVC: the program, `python -m dvc`, or `python -m pipeline.dvc`."""
    try:
        process = psutil.Process(pid)
        words = process.cmdline()[:4] if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.Error:
        return False
    return any(Path(word).name in ("dvc", "dvc.exe", "pipeline.dvc") for word in words)
