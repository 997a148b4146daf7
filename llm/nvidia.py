"""What NVIDIA GPUs the driver shows, asked without torch, whose import takes seconds."""

import os
from pathlib import Path

DEVICE_FILES = Path("/dev")  # where the driver puts a file for each GPU


def nvidia_gpus() -> int:
    """How many NVIDIA GPUs the driver shows to this process, whether torch can use them or not."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):  # the user hides them
        return 0
    return sum(path.name.removeprefix("nvidia").isdecimal() for path in DEVICE_FILES.glob("nvidia*"))
