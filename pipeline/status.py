"""What `dvc repro` would do, and why, before it does it.

`dvc status` says that a section of params.yaml, a file or an output has changed; here each key is told with its old and
its new value, and the stages are followed in order, as `dvc repro` will meet them:

- RUNS: something that the stage reads is not as dvc.lock has it, and no earlier run with just these inputs is cached;
- MAY_RUN: only an output of a stage that runs goes into it. If that comes out as before, the stage is skipped;
- CACHED: the outputs are in DVC's cache: they are only checked out. That is so where an output is missing, and where
  the run cache knows the very inputs, those from stages that are themselves cached included;
- UNCHANGED.

Nothing is written. The run cache is read through DVC's own functions, of which some are private: a test compares every
verdict with what `dvc repro` then does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.errors import WordmillError

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

NAMED = 4  # changed files of one kind that are listed by name


class Verdict(Enum):
    RUNS = "runs"
    MAY_RUN = "may run"
    CACHED = "from the cache"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Forecast:
    """What will become of a stage, and the reasons, a short line each."""

    stage: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()


@dataclass
class _Made:
    """What is known of the outputs so far: the stage that makes each, and the hash that it will have, if known."""

    by: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, Any] = field(default_factory=dict)  # of stages that are not left as they are; None: not known
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def owner(self, path: str) -> str | None:
        """The output that `path` is, or lies in."""
        parents = [path, *(parent.as_posix() for parent in Path(path).parents)]
        return next((parent for parent in parents if parent in self.by), None)


def forecast(force: bool = False) -> list[Forecast]:
    """Every stage in the order in which `dvc repro` takes them. Raises WordmillError."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from pipeline import dvc

    order = list(dvc.graph())
    made = _Made()
    try:
        with Repo() as repo:
            found = [_stage(repo, repo.stage.collect(name)[0], made, force) for name in order]
    except DvcException as error:
        raise WordmillError(f"DVC: {' '.join(str(error).split())}") from None
    return found


def lines(forecasts: list[Forecast]) -> Iterator[str]:
    """For people: a line a stage, and below it its reasons."""
    width = max((len(each.stage) for each in forecasts), default=0)
    for each in forecasts:
        yield f"{each.stage:{width}}  {each.verdict.value}"
        for reason in each.reasons:
            yield f"{'':{width}}    {reason}"


def _stage(repo: "Repo", stage: "PipelineStage", made: _Made, force: bool) -> Forecast:
    own, passed_on = _reasons(stage, made)
    if force:
        own.insert(0, "forced")
    verdict = Verdict.UNCHANGED
    if own or passed_on:
        hashes = None if force or _unknown(stage, made) else _cached(repo, stage, made)
        verdict = Verdict.CACHED if hashes is not None else Verdict.RUNS if own else Verdict.MAY_RUN
        made.hashes |= {out.def_path: (hashes or {}).get(out.def_path) for out in stage.outs}
    made.by |= {out.def_path: stage.addressing for out in stage.outs}
    made.verdicts[stage.addressing] = verdict
    return Forecast(stage.addressing, verdict, tuple(own + passed_on))


def _reasons(stage: "PipelineStage", made: _Made) -> tuple[list[str], list[str]]:
    """What is not as dvc.lock has it: known now, and what depends on stages before this one."""
    from dvc.dependency import ParamsDependency

    if not any(out.hash_info for out in stage.outs):
        waits = sorted({made.by[owner] for dep in stage.deps if (owner := made.owner(dep.def_path)) in made.hashes})
        return ["dvc.lock does not have it: it never ran here"], [f"after {name}" for name in waits]
    own: list[str] = ["its command in dvc.yaml changed"] if stage.cmd_changed else []
    passed_on: list[str] = []
    files: dict[str, list[str]] = {}
    for dep in stage.deps:
        owner = made.owner(dep.def_path)
        if isinstance(dep, ParamsDependency):
            own += list(_params(dep))
        elif owner is not None and owner in made.hashes:
            maker = made.by[owner]
            if made.hashes[owner] is None or owner != dep.def_path:
                passed_on.append(f"{dep.def_path}: {maker} {made.verdicts[maker].value}")
            elif made.hashes[owner] != dep.hash_info:
                own.append(f"{dep.def_path}: {maker} makes another one")
        elif state := dep.workspace_status().get(str(dep)):
            files.setdefault(_told(state), []).append(dep.def_path)
    own += [f"{_listed(paths)} {state}" for state, paths in files.items()]
    outs: dict[str, list[str]] = {}
    for out in stage.outs:
        if state := out.workspace_status().get(str(out)):
            outs.setdefault({"deleted": "not here", "new": "never made"}.get(state, "edited here"), []).append(
                out.def_path
            )
        elif out.use_cache and out.changed_cache():
            outs.setdefault("not in the cache", []).append(out.def_path)
    own += [f"{_listed(paths)} {state}" for state, paths in outs.items()]
    return own, passed_on


def _told(state: str) -> str:
    return {"modified": "changed", "deleted": "not here", "new": "new among what it reads"}.get(state, state)


def _params(dep: "Dependency") -> Iterator[str]:
    """Every key that differs: `pretrain.lr: 0.001 → 0.002`."""
    before = dep.hash_info.value if dep.hash_info else {}
    now = dep.read_params(flatten=False) if dep.exists else {}
    for section in dep.params or now:
        yield from differing(section, before.get(section, _Missing), now.get(section, _Missing))


class _Missing:
    """Marks a key that is not there: None is a value."""


def differing(name: str, before: Any, now: Any) -> Iterator[str]:
    """A line for each value that differs between two trees of params, by dotted name."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            yield from differing(f"{name}.{key}", before.get(key, _Missing), now.get(key, _Missing))
    elif before is _Missing:
        yield f"{name}: new, {now}" if not isinstance(now, Mapping) else f"{name}: a new section"
    elif now is _Missing:
        yield f"{name}: gone, was {before}" if not isinstance(before, Mapping) else f"{name}: the section is gone"
    elif before != now and not (isinstance(before, list | tuple) and list(before) == list(now)):
        yield f"{name}: {before} → {now}"


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(paths[:NAMED]) + more


def _unknown(stage: "PipelineStage", made: _Made) -> bool:
    """Whether the content of some dependency cannot be known before a stage has run."""
    for dep in stage.deps:
        owner = made.owner(dep.def_path)
        if owner in made.hashes and (made.hashes[owner] is None or owner != dep.def_path):
            return True
        if owner not in made.hashes and not dep.exists:
            return True
    return False


def _cached(repo: "Repo", stage: "PipelineStage", made: _Made) -> dict[str, Any] | None:
    """The hashes of the outputs that DVC will check out instead of running the stage; None if it will run it."""
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile
    from dvc_data.hashfile.meta import Meta

    if not all([stage.cmd, stage.deps, stage.outs]):
        return None
    locked = to_single_stage_lockfile(stage) if all(out.hash_info for out in stage.outs) else None
    as_locked = locked is not None and not stage.cmd_changed
    for dep in stage.deps:
        hash_info, before = made.hashes.get(dep.def_path) or dep.get_hash(), dep.hash_info
        as_locked = as_locked and hash_info == before
        if hash_info != before:
            dep.hash_info, dep.meta = hash_info, Meta()  # the old size and hash are in `meta`, too
    entry = locked if as_locked else _newest(repo, _get_cache_hash(to_single_stage_lockfile(stage), key=True))
    if entry is None:
        return None
    cached = repo.stage_cache._create_stage(entry, wdir=stage.wdir)
    return {out.def_path: out.hash_info for out in cached.outs} if _all_there(cached.outs) else None


def _all_there(outs: list["Output"]) -> bool:
    return all(not out.changed_cache() for out in outs)


def _newest(repo: "Repo", key: str) -> dict[str, Any] | None:
    """The run cache's newest entry for inputs with this key."""
    folder = Path(repo.stage_cache._get_cache_dir(key))
    entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    return repo.stage_cache._load_cache(key, entries[-1].name) if entries else None
