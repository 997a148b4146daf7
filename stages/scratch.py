"""The state of a stage's runs, `runs/<stage>/<fingerprint>/`: what a stopped run has left, the next one takes up again.

A state is found by its fingerprint (`stages.inputs`), so a changed run never takes up what means something else. The
state of other runs stays, since it may hold days of training: the start of a stage says what is there and how to go
on from it, `wordmill runs` lists it, and `wordmill runs prune` removes it. By itself a stage removes only what has not
been written to for `KEPT_DAYS`, and the oldest while all together take more than `KEPT_BYTES`; it prints a line for
each.

When a run has finished, its state goes, except its last checkpoint: from there a training can be given more steps
(`pretrain.continue_from`). It stays until the next run of the stage has finished. It also serves a run that finished
and was killed before DVC had recorded it.

`about.json` in each state says which params it is of. What params name (`pretrain.continue_from`) is never removed.
Other files and folders under `runs/<stage>/` are left alone.

Where `runs/<stage>` is a link, several checkouts share the folder behind it (`pipeline.worktree` makes such): then each
state has a lock.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm.errors import WordmillError

RUNS = Path("runs")
KEPT_DAYS = 30.0  # since something was last written
KEPT_BYTES = 100_000_000_000  # of all states of a stage
ABOUT, FINISHED = "about.json", "finished.json"
FINGERPRINT = re.compile(r"[0-9a-f]{16}")
CHECKPOINT = re.compile(r"step-([0-9]{8,})")
DAY = 24 * 3600.0
LISTED = 3  # states of other runs that the start of a stage names


@dataclass(frozen=True)
class State:
    """What a run has left."""

    stage: str  # the folder's name under runs/: the stage's, or `shared/` and it
    folder: Path
    params: Mapping[str, Any]  # dotted; empty where an older version wrote it
    step: int | None  # of the newest checkpoint
    bytes: int
    written: float  # seconds since 1970
    finished: bool

    @property
    def is_empty(self) -> bool:
        """Nothing in it could be taken up again."""
        return self.bytes == 0

    def progress(self) -> str:
        """How far the run came, in a few words; empty where no checkpoint says it."""
        if self.step is None:
            return ""
        steps = self.params.get(f"{Path(self.stage).name}.steps")
        return f"step {self.step:,}" + (f" of {steps:,}" if isinstance(steps, int) else "")


def states(stage: str) -> list[State]:
    """The states of a stage, the oldest first. Foreign files, links and what cannot be read are left out."""
    found = []
    for folder in _entries(RUNS / stage):
        if FINGERPRINT.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            with suppress(OSError):
                found.append(_state(stage, folder))
    return sorted(found, key=lambda state: state.written)


@contextmanager
def scratch(
    stage: str,
    fingerprint: str,
    params: Mapping[str, Any],
    named: Collection[Path] = (),
    recorded: Callable[[], str] = lambda: "",
) -> Iterator[Path]:
    """The folder of this run's state, this process's alone inside the block. `finish` ends a run that went well.

    `named` are folders that no limit removes; `recorded` tells what DVC has recorded of the stage
    (`stages.lineage.recorded`). Raises WordmillError where no folder can be made.
    """
    own = RUNS / stage / fingerprint
    with _sole(stage, fingerprint):
        _tell_others(stage, own, params)
        for state in outdated(states(stage), KEPT_DAYS, KEPT_BYTES):
            if state.folder != own and remove(state, named):
                print(f"{stage}: removed {described(state)}: over the limit of {KEPT_DAYS:g} days, "
                      f"{KEPT_BYTES / 1e9:g} GB", flush=True)  # fmt: skip
        _begin(stage, own, recorded)
        _write_json(own / ABOUT, {"stage": stage, "params": dict(params)})
        yield own


def finish(
    stage: str, own: Path, kept: Collection[int], named: Collection[Path], recorded: Callable[[], str]
) -> Path | None:
    """Remove the state of a run that has finished, but for its newest checkpoint and those of the steps `kept`.

    Only the last finished run keeps one. Returns the newest checkpoint, None where there is none. `recorded` tells
    what DVC has recorded of the stage before it records this run.
    """
    checkpoints = _checkpoints(own)
    if not checkpoints:
        shutil.rmtree(own)
        return None
    _write_json(own / FINISHED, {"recorded": recorded()})
    staying = {checkpoints[step].name for step in {max(checkpoints), *kept} & set(checkpoints)}
    for path in _entries(own):
        if path.name not in (ABOUT, FINISHED, *staying):
            _remove(path)
    for state in states(stage):
        if state.finished and state.folder != own:
            remove(state, named)
    return checkpoints[max(checkpoints)]


def outdated(found: list[State], days: float, size: float) -> list[State]:
    """Of states, the oldest first, those not written to for `days`, and the oldest while all take more than `size`."""
    now, total, outdated = time.time(), sum(state.bytes for state in found), []
    for state in found:
        if now - state.written > days * DAY or total > size:
            outdated.append(state)
            total -= state.bytes
    return outdated


def remove(state: State, named: Collection[Path] = ()) -> bool:
    """Remove a state that no path in `named` lies in and no other checkout uses; whether it did."""
    if any(path.resolve().is_relative_to(state.folder.resolve()) for path in named):
        return False
    lock = _lock(state.stage, state.folder.name)
    if lock is None:
        shutil.rmtree(state.folder, ignore_errors=True)
        return not state.folder.exists()
    try:
        with lock.acquire(timeout=0):
            shutil.rmtree(state.folder, ignore_errors=True)
    except Timeout:
        return False
    Path(lock.lock_file).unlink(missing_ok=True)
    return not state.folder.exists()


def described(state: State) -> str:
    """A state for people: where it is, how far it came, and its size."""
    kind = "finished" if state.finished else "stopped"
    return f"{state.folder} ({', '.join(filter(None, [kind, state.progress(), size(state)]))})"


def size(state: State) -> str:
    """How much room a state takes, for people."""
    return f"{state.bytes / 1e6:,.1f} MB"


def differing(state: State, params: Mapping[str, Any]) -> list[str]:
    """What differs between the params of a state and these, as `name before -> now`."""
    now = json.loads(json.dumps(dict(params)))
    names = [name for name in {**state.params, **now} if state.params.get(name) != now.get(name)]
    return [f"{name} {state.params.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in names]


def _tell_others(stage: str, own: Path, params: Mapping[str, Any]) -> None:
    """Say what other runs have left; remove what is empty."""
    others = []
    for state in states(stage):
        if state.folder != own and state.is_empty:
            remove(state)
        elif state.folder != own and (not state.finished or _can_get_more_steps(state, params)):
            others.append(state)
    for state in reversed(others[-LISTED:]):
        changes = differing(state, params) if state.params else ["written by an older version"]
        why = ", ".join(changes[:LISTED]) + (" ..." if len(changes) > LISTED else "")
        print(f"{stage}: this run differs from {described(state)}: {why or 'its code or its inputs'}", flush=True)
    if others:
        how = "take the differences back"
        if stage == "pretrain":
            how += f", or set pretrain.continue_from: {others[-1].folder}"
        more = f"; {len(others) - LISTED} more are there" if len(others) > LISTED else ""
        print(f"{stage}: to go on from such a state {how}; `wordmill runs` lists all{more}", flush=True)


def _can_get_more_steps(state: State, params: Mapping[str, Any]) -> bool:
    steps = params.get(f"{state.stage}.steps")
    return isinstance(steps, int) and state.step is not None and steps > state.step


def _begin(stage: str, own: Path, recorded: Callable[[], str]) -> None:
    """Make the folder. A finished run that DVC has recorded since is asked for anew, so it does not start at its end.

    DVC has not recorded it while what it says of the stage is another run, the one that it said when this one finished.
    """
    mark = own / FINISHED
    if mark.exists():
        if recorded() and _read_json(mark).get("recorded") == recorded():
            mark.unlink()
        else:
            print(f"{stage}: begins anew; the run in {own} has finished", flush=True)
            shutil.rmtree(own)
    try:
        own.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        taken = next(path for path in (RUNS, own.parent, own) if not path.is_dir())
        raise WordmillError(f"{taken}: not a folder, and the stage keeps its state there; move it away") from None


@contextmanager
def _sole(stage: str, fingerprint: str) -> Iterator[None]:
    """Wait until no other checkout uses the same state. In a checkout of its own the stage's lock is enough."""
    lock = _lock(stage, fingerprint)
    if lock is None:
        yield
        return
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{stage}: waits for another checkout, which does the same work", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(stage: str, fingerprint: str) -> FileLock | None:
    folder = RUNS / stage
    if not folder.is_symlink() and not stage.startswith("shared/"):
        return None
    shared = folder.resolve()
    return FileLock(shared.parent / f"{shared.name}-{fingerprint}.lock")


def _state(stage: str, folder: Path) -> State:
    """Raises OSError."""
    list(folder.iterdir())  # raises where it cannot be read; what is deeper counts as empty then
    size, written = 0, folder.stat().st_mtime
    for path in folder.rglob("*"):
        stat = path.lstat()
        written = max(written, stat.st_mtime)
        if path.name not in (ABOUT, FINISHED) and not path.is_dir():
            size += stat.st_size
    params = _read_json(folder / ABOUT).get("params", {})
    steps = _checkpoints(folder)
    finished = (folder / FINISHED).exists()
    return State(
        stage, folder, params if isinstance(params, dict) else {}, max(steps, default=None), size, written, finished
    )


def _checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by step."""
    named = ((CHECKPOINT.fullmatch(path.name), path) for path in _entries(folder))
    return {int(match[1]): path for match, path in named if match and path.is_dir()}


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it is none, or cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    half = path.with_name(f".{path.name}.half")
    half.write_text(json.dumps(content), encoding="utf-8")
    half.replace(path)
