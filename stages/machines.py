"""How many machines share a stage, as the environment says."""

import os

from llm.errors import WordmillError


def nodes(processes: int) -> int:
    """How many machines share `processes`. Raises WordmillError."""
    told = os.environ.get("WORDMILL_NODES", "1")
    if not told.isdecimal() or not int(told) or processes % int(told):
        raise WordmillError(
            f"WORDMILL_NODES: {told} machines cannot share pretrain.processes {processes} evenly; use a divisor of it"
        )
    if int(told) > 1 and "WORDMILL_RENDEZVOUS" not in os.environ:
        raise WordmillError("WORDMILL_RENDEZVOUS: not set; name the machine of the stage and a free port, HOST:PORT")
    return int(told)
