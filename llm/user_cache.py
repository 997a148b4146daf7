"""Where things lie that are made once for a user of this machine: never among the temporary files.

Names there can be guessed, and another user of the machine may have made them first.
"""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """The folder `name` in the user's cache (XDG_CACHE_HOME, else ~/.cache); it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / name
