"""One training at a time on a device: a lock that every checkout of a user's on this machine sees.

DVC's locks and Prefect's limits know nothing of each other, nor of another checkout; two trainings on one GPU would
share its memory and halve each other's speed. So a training takes a file lock, named for its device, before it puts
anything there, and keeps it until its process ends, however that happens. One that has to wait says for whom.

The locks lie in WORDMILL_LOCKS, or in `wordmill-<user id>` in the folder for temporary files. Others may write to that
folder, so ours is used only if it is a folder of this user's that nobody else can write to.
"""

import contextlib
import json
import os
import stat
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from llm.errors import WordmillError

if TYPE_CHECKING:
    import torch

POLL_SECONDS = 0.5
_held: dict[Path, FileLock] = {}  # until the process ends


def hold(stage: str, device: "torch.device") -> None:
    """Wait until no other training has `device`, and keep it for the rest of this process."""
    folder = locks()
    name = identity(device)
    path = folder / f"{name}.lock"
    if path in _held:
        return
    lock = FileLock(path)
    holder = folder / f"{name}.json"
    told = ""
    while True:
        try:
            lock.acquire(timeout=POLL_SECONDS if told else 0)
            break
        except Timeout:
            whom = _described(holder)
            if whom != told:
                print(f"{stage}: waits for {name}, which {whom} has", flush=True)
                told = whom
    _held[path] = lock
    since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
    _replace(holder, json.dumps({"pid": os.getpid(), "stage": stage, "folder": str(Path.cwd()), "since": since}))


def locks() -> Path:
    """The folder of the locks, made if need be. Raises WordmillError if others could tamper with it."""
    if given := os.environ.get("WORDMILL_LOCKS"):
        folder = Path(given)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"wordmill-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        what = "is not a folder of this user's"
    elif found.st_mode & others:
        what = "can be written to by others"
    else:
        return folder
    raise WordmillError(f"{folder}: {what}; remove it, or name another folder by WORDMILL_LOCKS")


def _replace(path: Path, text: str) -> None:
    """Write a file under a new name and put it in place: a link that stands there is not followed."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def identity(device: "torch.device") -> str:
    """A name for the device itself: CUDA_VISIBLE_DEVICES changes the number of a GPU, but not its UUID."""
    if device.type != "cuda":
        return device.type
    import torch

    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"


def _described(holder: Path) -> str:
    try:
        told = json.loads(holder.read_text())
        return f"`{told['stage']}` in {told['folder']} (process {told['pid']}, since {told['since']})"
    except (OSError, ValueError, KeyError):  # it is just being written
        return "another training"
