"""Compiling the decoder's machine code before the first text, and saying so."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from numba.core import event

from llm.compiled_decoder import CompiledDecoder
from llm.decoder import Decoder


class _Teller(event.Listener):
    def __init__(self) -> None:
        self._told = False

    def on_start(self, event: event.Event) -> None:
        if not self._told:
            self._told = True
            message = "compiling the decoder for this machine; this is done once and takes about 20 seconds"
            print(f"wordmill: {message}", file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        pass


@contextmanager
def saying_so() -> Iterator[None]:
    """Print a line if anything is compiled meanwhile."""
    teller = _Teller()
    event.register("numba:compile", teller)
    try:
        yield
    finally:
        event.unregister("numba:compile", teller)


def warm_up(decoder: Decoder) -> None:
    """Have a compiled decoder take one step, which compiles what is not in numba's cache yet."""
    if not isinstance(decoder, CompiledDecoder):
        return
    with saying_so():
        decoder.read([[0]], 2).step(torch.tensor([0]))
