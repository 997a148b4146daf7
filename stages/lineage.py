"""What a stage's result follows from: which rebuild it belongs to, and the key that names its work.

A *rebuild* is one `dvc repro`, `dvc exp run` or Prefect flow. Its stages are separate processes that share nothing but
an ancestor, so the rebuild is named by that ancestor's process id and start time (a process id alone is used again),
or by WORDMILL_REBUILD, which the flow sets because it runs a DVC process per stage.

The *key* of a stage is a hash of its params and of the content of everything it depends on. Two runs with one key do
the same work. The key of a stage that did not run can be derived as well: its code is on disk, and the digests of its
other inputs were recorded by the runs that made them. So the run that made any current output can be found without
reading the data again and without asking DVC.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llm.errors import WordmillError
from stages.params import PARAMS, completed
from stages.processes import host, started

PIPELINE = Path("dvc.yaml")
LOCK = Path("dvc.lock")
KEPT_LOCK = Path("runs/dvc.lock")


@dataclass(frozen=True)
class Declared:
    """A stage as dvc.yaml declares it: paths, and the sections of params.yaml that it reads."""

    name: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    sections: tuple[str, ...]
    metrics: tuple[str, ...] = ()  # those of the outputs that hold its figures


def declared(path: Path = PIPELINE) -> list[Declared]:
    """The stages of dvc.yaml, each after those it depends on."""
    return list(_declared(path.read_bytes())) if path.exists() else []


@lru_cache(maxsize=8)  # a stage asks several times, and parsing takes a third of a second
def _declared(text: bytes) -> list[Declared]:
    content = YAML(typ="safe", pure=True).load(text)["stages"]
    stages = [
        Declared(
            name,
            tuple(_names(stage.get("deps", []))),
            tuple(_names([*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])])),
            tuple(_names(stage.get("params", []))),
            tuple(_names(stage.get("metrics", []))),
        )
        for name, stage in content.items()
    ]
    made_by = {out: stage for stage in stages for out in stage.outs}
    ordered: dict[str, Declared] = {}

    def visit(stage: Declared) -> None:
        if stage.name not in ordered:
            for dep in stage.deps:
                if dep in made_by:
                    visit(made_by[dep])
            ordered[stage.name] = stage

    for stage in stages:
        visit(stage)
    return list(ordered.values())


def key(stage: str, params: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The key of a stage with these dotted params and these digests of its dependencies."""
    values = {name: plain(value) for name, value in params.items()}
    text = json.dumps([stage, values, dict(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def derived(
    stages: list[Declared],
    content: Mapping[str, Any],
    outputs_of: Callable[[str, str], Mapping[str, str] | None],
) -> Iterator[tuple[str, str]]:
    """Name and key of every stage whose inputs are all known, in order.

    `outputs_of(name, key)` gives the digests that a finished run of that stage and key recorded, or None; what
    depends on a stage without one is left out. `content` is that of params.yaml.
    """
    known: dict[str, str] = {}
    made = {out for stage in stages for out in stage.outs}
    for stage in stages:
        inputs = {dep: known[dep] for dep in stage.deps if dep in known}
        inputs |= {dep: digest(Path(dep)) for dep in stage.deps if dep not in made and Path(dep).is_file()}
        if len(inputs) < len(stage.deps) or any(section not in content for section in stage.sections):
            continue
        stage_key = key(stage.name, flat({section: content[section] for section in stage.sections}), inputs)
        yield stage.name, stage_key
        known |= outputs_of(stage.name, stage_key) or {}


def keep_lock() -> None:
    """Keep a copy of dvc.lock, which a kill may cut: DVC overwrites it in place (`pipeline.repair`)."""
    try:
        content = LOCK.read_bytes()
        if not isinstance(YAML(typ="safe").load(content), dict):
            return
    except (OSError, YAMLError):
        return
    half = KEPT_LOCK.with_name(f"{KEPT_LOCK.name}.{os.getpid()}")
    half.write_bytes(content)
    half.replace(KEPT_LOCK)


def recorded(stage: Declared, sections: Mapping[str, Any], path: Path = LOCK) -> str:
    """What dvc.lock says of a stage, as a digest, while it is of other inputs than the present ones; else empty.

    `sections` are those of params.yaml. Of a folder, the digest that its maker's entry has is the present one.
    """
    try:
        entries = YAML(typ="safe").load(path)["stages"]
    except (OSError, YAMLError, TypeError, KeyError):
        entries = {}
    entry = entries.get(stage.name) or {}
    text = json.dumps(entry, sort_keys=True, default=str)
    found = hashlib.sha256(text.encode()).hexdigest()
    made = {out["path"]: out.get("md5") for other in entries.values() for out in other.get("outs", [])}
    deps = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
    params = entry.get("params", {}).get("params.yaml", {})
    if set(deps) != set(stage.deps) or _numbers(params) != _numbers(sections):
        return found
    for name, md5 in deps.items():
        file = Path(name)
        now = hashlib.md5(file.read_bytes()).hexdigest() if file.is_file() else made.get(name)
        if now != md5:
            return found
    return ""


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's relative names and contents in sorted order. Raises WordmillError."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise WordmillError(f"{path}: not found; `dvc repro` makes it, or `dvc checkout` brings it back")
    whole = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        whole.update(f"{file_path.relative_to(path).as_posix()}\0{digest(file_path)}\n".encode())
    return whole.hexdigest()


def document() -> dict[str, Any]:
    """params.yaml with absent keys at their defaults; empty if it cannot be read. A stage has checked what it reads."""
    try:
        return completed(parsed(PARAMS.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        return {}


def parsed(text: str) -> dict[str, Any]:
    """The document in `text`; empty if it is none."""
    try:
        content = YAML(typ="safe").load(text)
    except (YAMLError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and keys as dotted names: {"pretrain.lr": 0.001, ...}."""
    return {
        f"{section}.{name}": value
        for section, keys in content.items()
        if isinstance(keys, Mapping)
        for name, value in keys.items()
    }


def rebuild() -> str:
    """The name of the rebuild that this process belongs to."""
    if name := os.environ.get("WORDMILL_REBUILD"):
        return name
    process = psutil.Process()
    for ancestor in [*process.parents(), process]:  # a stage started by hand is a rebuild of its own
        if ancestor.pid == process.pid or _is_dvc(ancestor):
            return f"{host()}-{ancestor.pid}-{started(ancestor.pid)}"
    raise AssertionError("the process itself always matches")


def modified(path: Path) -> int:
    """When a file, or anything in a folder, was last written, in nanoseconds; 0 where nothing is there.

    To be compared with itself only: a clock that is set back makes a file younger than the moment in which it was read.
    """
    files = [path, *path.rglob("*")] if path.exists() else []
    return max((file.stat().st_mtime_ns for file in files), default=0)


def _numbers(value: Any) -> Any:
    """A value with texts such as 1e-3 as numbers: the fast YAML reader, of version 1.1, takes them for texts."""
    if isinstance(value, Mapping):
        return {name: _numbers(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(each) for each in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_dvc(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()[:3]
    except psutil.Error:
        return False
    return any(Path(word).name in ("dvc", "dvc.exe") for word in words)


def _names(entries: list[Any]) -> list[str]:
    """DVC lists a path as a string, or as a mapping from the path to its settings."""
    return [next(iter(entry)) if isinstance(entry, Mapping) else str(entry) for entry in entries]


def plain(value: Any) -> Any:
    """A value as YAML would give it back: the typed params hold 1.0 and tuples where the file says 1 and lists."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
