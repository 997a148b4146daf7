"""What a stage's result follows from, as it was when the stage began, so that the end can compare.

DVC hashes params and dependencies *after* a stage's command (treeverse/dvc issue 11058). An edit made while a stage
runs would therefore be recorded as what the stage ran with: in dvc.lock, in the run cache, and in MLflow. So a stage
remembers its inputs when it begins, and refuses at its end if they are not the same any more.

The comparison costs little: a file whose size, times and inode are the same is not read again. One that was only
touched is read, and its content decides.

The fingerprint, by which a stopped run finds its state again, holds what can change the outputs and nothing else:
Python code without comments and docstrings, and no key that its section lists in `WITHOUT_EFFECT`.
"""

import ast
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stages
from llm.errors import TransientError, WordmillError
from stages import lineage
from stages.lineage import Declared, digest, plain
from stages.params import document, flat, named_files

LISTED = 5  # changes that the message names
Marks = dict[str, tuple[int, int, int, int]]  # of each file: size, times of content and inode, inode


@dataclass(frozen=True)
class Inputs:
    """What a stage began with."""

    sections: dict[str, Any]  # of params.yaml, as read
    digests: dict[str, str]  # of the dependencies in dvc.yaml, by path
    sources: dict[str, str]  # of the user's own files and folders that params name, by path
    marks: dict[str, Marks]  # of both, taken before they were read

    def check_unchanged(self) -> None:
        """Raises WordmillError with what has changed since."""
        changed = [*self._changed_params(), *self._changed_paths()]
        if changed:
            more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
            raise WordmillError(
                f"changed while the stage ran: {', '.join(changed[:LISTED])}{more}; DVC would record the result as "
                "made with the change, so it is not taken; run `dvc repro` again (the state of this run is kept, and "
                "with the change undone it is taken up again)"
            )

    def _changed_params(self) -> list[str]:
        try:
            content = document()
        except WordmillError:
            return ["params.yaml, which can no longer be read"]
        before = _dotted(self.sections)
        now = _dotted({name: content.get(name) for name in self.sections})
        names = [name for name in {**before, **now} if before.get(name, "absent") != now.get(name, "absent")]
        return [f"{name} ({before.get(name, 'absent')} -> {now.get(name, 'absent')})" for name in names]

    def _changed_paths(self) -> list[str]:
        changed = []
        for name, before in {**self.digests, **self.sources}.items():
            path = Path(name)
            if marks(path) == self.marks[name]:
                continue
            try:
                same = digest(path) == before
            except (WordmillError, OSError):
                same = False
            if not same:
                changed.append(name)
        named = {str(path) for path in named_files(lineage.flat(self.sections))}
        return changed + sorted(named - set(self.sources))  # a glob matches more files than before


def read(declaration: Declared, content: Mapping[str, Any], began: int | None = None) -> Inputs:
    """The inputs of a stage now; `content` is that of params.yaml, `began` when this process began to read code.

    Raises TransientError if code was changed since then, and WordmillError if something is not there.
    """
    sections = {name: content.get(name) for name in declaration.sections}
    sources = [str(path) for path in named_files(lineage.flat(sections))]
    taken = {name: marks(Path(name)) for name in (*declaration.deps, *sources)}
    since = stages.BEGAN if began is None else began
    for name in declaration.deps:
        if name.endswith(".py") and any(since < mark[1] <= time.time_ns() for mark in taken[name].values()):
            raise TransientError(f"{name}: was changed while the stage started; run `dvc repro` again")
    digests = {name: digest(Path(name)) for name in declaration.deps}
    return Inputs(sections, digests, {name: digest(Path(name)) for name in sources}, taken)


def fingerprint(params: Any, inputs: Inputs) -> str:
    """The name of the state of a run with these typed params and inputs, 16 hex digits."""
    values = flat(params)
    for section, config in vars(params).items():
        for key in getattr(config, "WITHOUT_EFFECT", ()):
            del values[f"{section}.{key}"]
    content = {name: meaning(Path(name)) or found for name, found in inputs.digests.items()}
    # Where a run that goes on from another's checkpoint is after its own first one, that folder is not read again.
    sources = {name: found for name, found in inputs.sources.items() if name != values.get("pretrain.continue_from")}
    whole = json.dumps([values, content, sources], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def meaning(path: Path) -> str | None:
    """A digest of what Python code does: its syntax tree without comments and docstrings. None for other files."""
    if path.suffix != ".py" or not path.is_file():
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _documented(node):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def marks(path: Path) -> Marks:
    """Size, times and inode of a file, or of every file in a folder; empty where nothing is there."""
    found: Marks = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        try:
            stat = file.stat()
        except OSError:  # gone, or a link to nothing
            continue
        if not file.is_dir():
            found[str(file)] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return found


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None


def _dotted(sections: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names and values as text, in which 1 and 1.0 are the same and 1 and true are not."""
    return {name: json.dumps(plain(value), default=str) for name, value in lineage.flat(sections).items()}
