"""One training at a time on a device: a lock that every checkout of a user's on this machine sees.

DVC's locks and Prefect's limits know nothing of each other, nor of another checkout; two trainings on one GPU would
share its memory and halve each other's speed. So a training takes a file lock, named for its device, before it puts
anything there, and keeps it until its process ends, however that happens. One that has to wait says for whom. Where
there are several GPUs it takes a free one; a training by several processes takes one for each.

The locks lie in WORDMILL_LOCKS, or in `wordmill-<user id>` in the folder for temporary files. Others may write to that
folder, so ours is used only if it is a folder of this user's that nobody else can write to.
"""

import contextlib
import json
import os
import stat
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from llm.errors import WordmillError

if TYPE_CHECKING:
    import torch

POLL_SECONDS = 0.5
TAKEN = "WORDMILL_GPUS"  # numbers of the GPUs that a stage took for its processes
_held: dict[Path, FileLock] = {}  # until the process ends


def hold(stage: str, device: "torch.device", count: int = 1) -> list["torch.device"]:
    """Wait until `count` devices of this kind are free of other trainings; keep them for the rest of this process.

    Of several GPUs any free ones will do, `device` first. All are taken at once or none, so that two trainings that
    need more than one never wait for each other.
    """
    folder = locks()
    candidates = _alike(device)
    names = {identity(each): each for each in candidates}
    mine = [each for name, each in names.items() if folder / f"{name}.lock" in _held]
    if len(mine) >= count:
        return mine[:count]
    told = ""
    while len(taken := _take(folder, list(names), count)) < count:
        whom = " and ".join(dict.fromkeys(_described(folder / f"{name}.json") for name in names if name not in taken))
        if whom != told:
            print(f"{stage}: waits for {_wanted(list(names), count)}, which {whom} has", flush=True)
            told = whom
        time.sleep(POLL_SECONDS)
    since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
    for name, lock in taken.items():
        _held[folder / f"{name}.lock"] = lock
        holder = {"pid": os.getpid(), "stage": stage, "folder": str(Path.cwd()), "since": since}
        _replace(folder / f"{name}.json", json.dumps(holder))
    return [names[name] for name in taken]


def gpu_of(process: int) -> int:
    """The number of the GPU for one of several processes on this machine, of those that their stage took."""
    taken = os.environ.get(TAKEN, "")
    return int(taken.split(",")[process]) if taken else process


def _take(folder: Path, names: list[str], count: int) -> dict[str, FileLock]:
    """The locks of the first `count` free devices; where fewer are free, those are let go again."""
    taken: dict[str, FileLock] = {}
    for name in names:
        if len(taken) == count:
            break
        lock = _held.get(folder / f"{name}.lock") or FileLock(folder / f"{name}.lock")
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            taken[name] = lock
    if len(taken) < count:
        for lock in taken.values():
            lock.release()
    return taken


def _wanted(names: list[str], count: int) -> str:
    if len(names) == 1:
        return names[0]
    return f"{count} of {len(names)} GPUs" if count > 1 else f"one of {len(names)} GPUs"


def _alike(device: "torch.device") -> list["torch.device"]:
    """All that would do in place of `device`, which comes first."""
    if device.type != "cuda":
        return [device]
    import torch

    others = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return [device, *(other for other in others if other != device)]


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
