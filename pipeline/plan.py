"""What a rebuild starts from: checked params, and the folder to itself.

    python -m pipeline.plan '{"preset": "shakespeare", "changes": {"pretrain.steps": 200}}'

writes params.yaml so. A flow runs this in the worktree of another commit, whose own schema and presets are asked.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm.errors import WordmillError
from pipeline import overrides, presets
from pipeline.files import read, replace
from stages import params, preflight, schema
from stages.params import PARAMS

READY = "params.yaml is ready"


def text(preset: str | None, changes: Mapping[str, Any]) -> str | None:
    """The params.yaml that a rebuild is to use, checked; None for the one that is there. Raises WordmillError."""
    if preset is not None:
        new = presets.from_preset(preset, changes)
    elif changes:
        new = presets.changed(read(PARAMS), changes, "overrides")
    else:
        new = None
    content = params.document() if new is None else params.parse(new, PARAMS.name)
    preflight.check(schema.check(content))
    return new


@contextlib.contextmanager
def prepared(preset: str | None, changes: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block params.yaml is what the rebuild is to use, and no other rebuild runs in this folder."""
    with overrides.sole_rebuild(), overrides.applied(text(preset, changes)):
        yield


def prepare(folder: Path, preset: str | None, changes: Mapping[str, Any]) -> None:
    """Have the checkout in `folder` check and write its params.yaml by its own code. Raises WordmillError."""
    wanted = json.dumps({"preset": preset, "changes": dict(changes)})
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.plan", wanted], cwd=folder, capture_output=True, text=True, check=False
    )
    # Libraries may print lines of their own, before and after.
    errors = done.stderr.strip().splitlines()
    if done.returncode == WordmillError.status and errors:
        raise WordmillError(errors[-1])
    if done.returncode or READY not in done.stdout.splitlines():  # a commit without this program does nothing
        line = (errors or ["it is older than these deployments"])[-1]
        raise WordmillError(f"commit: its params cannot be checked by its own code: {line}")


def main() -> None:
    wanted = json.loads(sys.argv[1])
    try:
        new = text(wanted["preset"], wanted["changes"])
        if new is not None:
            replace(PARAMS, new)
        print(READY)
    except WordmillError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)


if __name__ == "__main__":
    main()
