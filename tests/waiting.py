"""How tests wait: for an event, and not for a number of seconds that a busy machine needs more of."""

import time
from collections.abc import Callable

LIMIT = 600.0  # seconds after which what is waited for will never come


def wait_for(condition: Callable[[], object]) -> None:
    """Until `condition` holds."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
