"""A checkout apart from this one: some commit and some changes in a git worktree, where stages run undisturbed."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML

from llm.errors import WordmillError
from pipeline import dvc
from pipeline.files import replace
from pipeline.git import check_own_repository, git
from stages import lineage
from stages.params import named_files
from stages.uncommitted import is_secret

# Names that would lead commands in the other checkout back to this one.
ALONE = {
    "MLFLOW_TRACKING_URI": "",
    "MLFLOW_REGISTRY_URI": "",
    "MLFLOW_EXPERIMENT_NAME": "",
    "WORDMILL_REBUILD": "",
    "DVC_ROOT": "",
}


def make(folder: Path, commit: str, patch: bytes, params: str, left_out: Iterable[str], cached: bool) -> None:
    """Make the worktree anew. `left_out` are files in no patch; `cached` shares this checkout's DVC cache.

    The user's own files that params name by a path inside the checkout are linked. Raises WordmillError.
    """
    check_own_repository()
    remove(folder)
    git("worktree", "add", "--quiet", "--detach", "--force", str(folder), commit)
    if patch:
        git("apply", "--whitespace=nowarn", "-", cwd=folder, data=patch)
    if params:
        replace(folder / "params.yaml", params)
    content = YAML(typ="safe").load(params) or {}
    needed = [Path(name) for name in left_out if not is_secret(name)]
    for path in [*needed, *named_files(lineage.flat(content))]:
        target = folder / path
        if path.exists() and not path.is_absolute() and not target.exists() and ".." not in path.parts:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.absolute())
    if cached:
        dvc.share_cache(Path.cwd(), folder.absolute())


def remove(folder: Path) -> None:
    """Take the worktree away, whatever is left of it; what its links point to stays."""
    with contextlib.suppress(WordmillError):
        git("worktree", "remove", "--force", str(folder))
    if folder.exists():  # git knows nothing of it
        shutil.rmtree(folder)
    git("worktree", "prune")
