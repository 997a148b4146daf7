"""From an MLflow run back to the very bytes.

The run's commit goes into a git worktree of its own under runs/reproduce/, its uncommitted changes are applied, its
params.yaml is put in place, and what git never had (the user's own files that params name, and files that were left
out of the patch) is linked from this checkout. There `dvc repro` builds everything anew: the worktree has a DVC cache
of its own, which is empty, so that no output is merely copied from the cache. `cached` shares this checkout's cache
instead: it shows that the outputs are still to be had, and proves nothing about rebuilding them.

Then the SHA-256 of every output is compared with the one that the run left in MLflow. Where they differ, what went into
the stage is compared as well; the packages and the machine are those of this process, which `dvc repro` inherits.

A reproduction writes its own MLflow runs into the worktree: yours are not mixed with copies of themselves. One that was
interrupted goes on where it stopped, if nothing that it depends on has changed.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from llm.errors import WordmillError
from pipeline import apart, compare, dvc
from pipeline.files import replace
from pipeline.git import git
from stages import lineage, provenance
from stages.history import Rebuild, StageRecord, versions
from stages.lineage import digest
from stages.uncommitted import changed_since, uncommitted

FOLDER = Path("runs/reproduce")


@dataclass(frozen=True)
class Options:
    """`here`: this checkout's code in the place of the run's. `until`: only this stage and those it needs."""

    here: bool = False
    cached: bool = False
    until: str | None = None
    keep: bool = False


@dataclass(frozen=True)
class Result:
    """What came out: a difference or None for each stage of the run, in order, and why the rebuild stopped, if so."""

    stages: dict[str, compare.StageDifference | None]
    failure: str | None
    folder: Path | None  # where the worktree is, if it was kept

    @property
    def same(self) -> bool:
        return self.failure is None and all(found and not found.outputs for found in self.stages.values())


def reproduce(run: Rebuild, options: Options, tell: Callable[[str], None]) -> Result:
    """Rebuild a run apart from this checkout, and compare. Raises WordmillError where it cannot be begun."""
    wanted = _wanted(run, options.until)
    commit, patch = _code(run, options.here)
    folder = FOLDER / run.run_id[:8]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _restore(run, folder, commit, patch, options, tell)
        failure = None
        try:
            dvc.repro(folder, [options.until] if options.until else [], tell, apart.ALONE)
        except dvc.StageFailedError as error:
            failure = str(error)
        compared = _compare(run, wanted, folder)
        result = Result(compared, failure, folder)
        if result.same and not options.keep:
            folder.with_suffix(".json").unlink()
            apart.remove(folder)
            result = Result(compared, failure, None)
    return result


def lines(run: Rebuild, result: Result) -> Iterator[str]:
    """For people: a line a stage, and below one that differs what went into it that is not the same."""
    width = max(map(len, result.stages), default=0)
    for name, found in result.stages.items():
        if found is None:
            yield f"{name:{width}}  not made"
        elif not found.outputs:
            yield f"{name:{width}}  the same bytes"
        else:
            yield f"{name:{width}}  DIFFERENT: {', '.join(found.outputs)}"
            for kind in compare.KINDS:
                if kind in found.causes:
                    yield f"{'':{width}}    {kind}: {compare.listed(found.causes[kind])}"
            if not found.causes:
                yield f"{'':{width}}    nothing that was recorded differs: is the stage deterministic?"
    if result.failure:
        yield f"the rebuild failed: {result.failure}"
    same = sum(found is not None and not found.outputs for found in result.stages.values())
    yield f"{same} of {len(result.stages)} stages have the bytes of {run.name}"
    for kind in ("code", "packages", "hardware"):  # where the bytes are the same all the same
        quiet = [found.causes[kind] for found in result.stages.values() if found and kind in found.causes]
        if quiet and not any(found and found.outputs and kind in found.causes for found in result.stages.values()):
            yield f"although other {kind}: {compare.listed(list(dict.fromkeys(item for one in quiet for item in one)))}"
    if result.folder:
        yield f"kept in {result.folder}; `git worktree remove --force {result.folder}` removes it"


def _wanted(run: Rebuild, until: str | None) -> list[str]:
    """The stages to be compared."""
    whole = {name: record for name, record in run.stages.items() if record.outputs}
    if not whole:
        raise WordmillError(f"{run.name}: no stage of it has finished, so there is nothing to compare with")
    if until is None:
        return list(whole)
    if until not in whole:
        raise WordmillError(f"--until {until}: {run.name} has no such finished stage; it has {', '.join(whole)}")
    makers = {path: name for name, record in whole.items() for path in record.outputs}
    needed = {until}
    for name in reversed(whole):
        if name in needed:
            needed |= {makers[owner] for path in whole[name].inputs if (owner := _owner(path, makers))}
    return [name for name in whole if name in needed]


def _owner(path: str, makers: dict[str, str]) -> str | None:
    return next((out for out in makers if path == out or path.startswith(f"{out}/")), None)


def _code(run: Rebuild, here: bool) -> tuple[str, bytes]:
    """The commit and the patch that lead to the code. Raises WordmillError."""
    if here:
        commit, (patch, _) = provenance.commit(), uncommitted()
    else:
        commit, patch = run.commit, run.patch
    if commit is None:
        raise WordmillError(f"{'this folder' if here else run.name}: not in a git repository with a commit")
    if not here:
        try:
            git("cat-file", "-e", f"{commit}^{{commit}}")
        except WordmillError:
            raise WordmillError(
                f"{run.name}: its commit {commit[:12]} is not in this repository; fetch it with git"
            ) from None
    return commit, patch


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise WordmillError(f"{folder}: this run is being reproduced there already; wait for it, or stop it") from None


def _restore(
    run: Rebuild, folder: Path, commit: str, patch: bytes, options: Options, tell: Callable[[str], None]
) -> None:
    """Make the worktree, or find the one that an interrupted reproduction of the same left."""
    depends_on = [run.run_id, commit, hashlib.sha256(patch).hexdigest(), options.cached]
    mark = json.dumps([*depends_on, provenance.packages(), provenance.hardware()])
    begun = folder.with_suffix(".json")
    changes = "with its uncommitted changes" if patch else "which has no uncommitted changes"
    tell(f"{run.name}: commit {commit[:12]}{' of this checkout' if options.here else ''}, {changes}, in {folder}")
    if folder.exists() and begun.exists() and begun.read_text() == mark:
        tell("going on with what an earlier try has left")
        return
    begun.unlink(missing_ok=True)
    for line in changed_since(run.left_out):
        tell(f"warning: {line}")
    apart.make(folder, commit, patch, run.params, run.left_out, options.cached)
    replace(begun, mark)


def _compare(run: Rebuild, wanted: list[str], folder: Path) -> dict[str, compare.StageDifference | None]:
    pipeline = {stage.name: stage for stage in lineage.declared(folder / "dvc.yaml")}
    made = [path for record in run.stages.values() for path in record.outputs]
    packages, hardware = versions(provenance.packages()), provenance.hardware()
    content = YAML(typ="safe", pure=True).load(folder / "params.yaml")
    found: dict[str, compare.StageDifference | None] = {}
    for name in wanted:
        before = run.stages[name]
        stage = pipeline.get(name)
        if stage is None or not all((folder / path).exists() for path in before.outputs):
            found[name] = None
            continue
        params = lineage.flat({section: content.get(section, {}) for section in stage.sections})
        now = StageRecord(
            name=name,
            run_id="",
            status="FINISHED",
            params={key: str(value) for key, value in params.items()},
            inputs={path: digest(folder / path) for path in stage.deps if (folder / path).exists()},
            outputs={path: digest(folder / path) for path in before.outputs},
            sources={path: digest(Path(path)) for path in before.sources if Path(path).exists()},
            packages=packages,
            hardware=hardware,
        )
        found[name] = compare.stage(before, now, made)
    return found
