"""What differs from the commit: a patch that goes to MLflow with every run, and the names of what is not in it.

Whoever reaches the MLflow server reads the patch, so it holds code and nothing else:

- changes of files that are in the commit;
- files that the commit does not have, if they are code or settings of the project (`CODE_FOLDERS`, `CODE_FILES`), or
  inputs that dvc.yaml names, up to 1 MB each.

A file whose name says that it may hold secrets (`SECRET`) is in no patch, changed or new. What is left out is listed by
its name and its SHA-256, and secret files by their names alone.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from stages import lineage
from stages.provenance import program_output

# A patch that `git apply` takes, whatever the user has set for reading diffs.
DIFF = (
    *("git", "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false"),
    *("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--binary"),
)
CODE_FOLDERS = ("llm", "stages", "pipeline", "presets")
CODE_ENDINGS = (".py", ".html", ".css", ".js", ".yaml", ".c", ".cpp", ".cu", ".h", ".pyx")
CODE_FILES = ("params.yaml", "dvc.yaml", "dvc.lock", "pyproject.toml", "constraints.txt")
IGNORING = (".gitignore", ".dvcignore")  # in any folder; DVC writes them beside its outputs
SECRET = re.compile(
    r"""(^|/)\.(?!gitignore$|dvcignore$|gitattributes$)  # hidden files, and what is in hidden folders
    |(^|/)[^/]*(secret|credential|password|passwd|service[-_]?account)[^/]*$
    |(^|/)[^/]*(api|auth|access|private|ssh|hf)[-_]?(key|token)[^/]*$
    |(^|/)(id_(rsa|dsa|ecdsa|ed25519)[^/]*|kaggle\.json|htpasswd|env(\.(local|txt|sh))?|tokens?(\.(txt|json))?)$
    |\.(env|pem|key|p12|pfx|jks|keystore|kdbx|gpg|ovpn|pgpass|netrc)(\.[^/]*)?$
    """,
    re.IGNORECASE | re.VERBOSE,
)
LARGEST = 1_000_000  # bytes of a new file in the patch; a bigger one is data, not code
LARGEST_HASHED = 100_000_000  # bytes; hashing more would hold a stage's start up
LISTED = 1000  # files that are listed by name


def uncommitted() -> tuple[bytes, dict[str, str]]:
    """The patch, and what is not in it: SHA-256 by path, empty for what is secret or too big to be hashed."""
    changed = _names(*DIFF, "--name-only", "--diff-filter=a", "-z", "HEAD")
    added = _names(*DIFF, "--relative", "--name-only", "--diff-filter=A", "-z", "HEAD")  # `git add` without a commit
    untracked = _names("git", "ls-files", "--others", "--exclude-standard", "-z")
    hidden = [name for name in changed if is_secret(name)]
    wanted = [f":(top,literal){name}" for name in changed if not is_secret(name)]
    patch = (program_output(*DIFF, "HEAD", "--", *wanted) or b"") if wanted else b""
    left_out = dict.fromkeys(hidden, "")
    inputs = {dep for stage in lineage.declared() for dep in stage.deps}
    for name in sorted({*added, *untracked}):
        path = Path(name)
        if path.is_symlink() or not path.is_file():
            continue
        if is_secret(name):
            left_out[name] = ""
        elif is_code(name, inputs) and path.stat().st_size <= LARGEST:
            patch += program_output(*DIFF, "--no-index", "--", os.devnull, name, statuses=(0, 1)) or b""
        elif len(left_out) < LISTED:
            left_out[name] = _digest(path)
    return patch, dict(sorted(left_out.items()))


def is_secret(name: str) -> bool:
    """Whether a file's name says that it may hold passwords or keys."""
    return SECRET.search(name) is not None


def is_code(name: str, inputs: set[str]) -> bool:
    """Whether a file is the project's code or settings, or an input that dvc.yaml names, or lies in one."""
    path = Path(name)
    if (
        name in CODE_FILES
        or path.name in IGNORING
        or name in inputs
        or any(parent.as_posix() in inputs for parent in path.parents)
    ):
        return True
    return path.parts[0] in CODE_FOLDERS and len(path.parts) > 1 and path.suffix in CODE_ENDINGS


def changed_since(left_out: Mapping[str, str]) -> Iterator[str]:
    """A line for each file that was left out of a patch and is not here as it was."""
    for name, digest in left_out.items():
        path = Path(name)
        if not path.exists():
            yield f"{name}: was not in git, and is not here"
        elif digest and _digest(path) != digest:
            yield f"{name}: was not in git, and is here in another version"


def _digest(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_HASHED:
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _names(*command: str) -> list[str]:
    return sorted(os.fsdecode(raw) for raw in (program_output(*command) or b"").split(b"\0") if raw)
