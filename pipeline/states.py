"""What stopped and finished runs have left under runs/, for `wordmill runs`: listed, and removed by stated limits.

It looks into `runs/<stage>/` of every stage, and into `runs/shared/<stage>/`, which the worktrees of deployed rebuilds
share. A state that a stage is using now stays, and so does one that params.yaml names.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from stages import lineage, params, scratch
from stages.scratch import State, described, outdated, remove


def found() -> list[State]:
    """All states, by stage, the oldest first."""
    names = [stage.name for stage in lineage.declared()]
    return [state for name in names for place in (name, f"shared/{name}") for state in scratch.states(place)]


def lines(states: list[State]) -> Iterator[str]:
    """For people: a line a state, and what its params are different in; then how to go on."""
    if not states:
        yield "no run has left anything under runs/"
        return
    content = lineage.document()
    for state in states:
        written = datetime.fromtimestamp(state.written).astimezone().strftime("%Y-%m-%d %H:%M")
        yield f"{written}  {described(state)}"
        sections = {name.partition(".")[0] for name in state.params}
        now = lineage.flat({name: content.get(name) for name in sections})
        for change in scratch.differing(state, now) if state.params else ():
            yield f"    {change}"
    yield f"{sum(state.bytes for state in states) / 1e9:.2f} GB in all"
    yield "a stopped run goes on with `dvc repro` while params, code and inputs are its own"
    yield "a pretraining goes on with other params where pretrain.continue_from names its folder"


def prune(days: float, size: float, tell: Callable[[str], None]) -> int:
    """Remove the states not written to for `days`, and the oldest while those of a stage take more than `size` bytes.

    Returns how many are gone.
    """
    named = params.named_files(lineage.flat(lineage.document()))
    gone = 0
    by_stage: dict[str, list[State]] = {}
    for state in found():
        by_stage.setdefault(state.stage, []).append(state)
    for stage, states in by_stage.items():
        for state in outdated(states, days, size):
            if _removed(stage, state, named):
                tell(f"removed {described(state)}")
                gone += 1
            else:
                tell(f"left {described(state)}: in use, or named in params.yaml")
    return gone


def _removed(stage: str, state: State, named: list[Path]) -> bool:
    try:
        with FileLock(scratch.RUNS / f"{Path(stage).name}.lock", timeout=0):
            return remove(state, named)
    except Timeout:
        return False
