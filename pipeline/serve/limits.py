"""What one client may cost the others."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    connections: int = 512  # open; a new one takes the place of the one that has waited longest for its client
    head_seconds: float = 10.0  # in which a request's head must have come
    body_seconds: float = 10.0  # in which its body must have come
    stall_seconds: float = 30.0  # in which a client must take something of a waiting answer
    body_bytes: int = 1_000_000
    small_body_bytes: int = 65_536  # larger bodies are read `large_bodies` at a time
    large_bodies: int = 16
    waiting: int = 64  # jobs in the queue; the next is refused with 429
    at_once: int = 16  # choices that are written together
    log_lines: int = 10  # of one kind in a minute
