"""The content of a file that may be packed as .gz, .zst, .bz2 or .xz, a bounded piece at a time.

A few bytes of a packed file can stand for gigabytes, so what one step unpacks is bounded. Several packed streams one
behind the other are one content, as the tools of all four formats have it; a file that ends within one is an error.
"""

import bz2
import gzip
import lzma
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

LZMA_MEMORY = 1 << 30  # bytes of a .xz file's dictionary; the highest usual setting takes 65 MB


def unpacked(file: BinaryIO, packing: str, size: int, packed_size: int) -> Iterator[bytes]:
    """Pieces of about `size` bytes. Of .zst `packed_size` bytes are unpacked at a time, each to at most 2**15."""
    if packing == ".zst":
        yield from _unzstd(file, size, packed_size)
    elif packing == ".xz":
        yield from _unxz(file, size)
    elif packing in (".gz", ".bz2"):
        with gzip.open(file) if packing == ".gz" else bz2.open(file) as content:
            while chunk := content.read(size):
                yield chunk
    else:
        while chunk := file.read(size):
            yield chunk


def _unzstd(file: BinaryIO, size: int, packed_size: int) -> Iterator[bytes]:
    # Not `stream_reader`: it takes a truncated file for a short one.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = unpacker.decompressobj()
    begun = False
    gathered = bytearray()
    while data := file.read(packed_size):
        while data:
            if frame.eof:
                frame = unpacker.decompressobj()
            gathered += frame.decompress(data)
            begun = True
            data = frame.unused_data if frame.eof else b""
            if len(gathered) >= size:
                yield bytes(gathered)
                gathered.clear()
    if not begun or not frame.eof:
        raise EOFError("the compressed file ends too early")
    if gathered:
        yield bytes(gathered)


def _unxz(file: BinaryIO, size: int) -> Iterator[bytes]:
    stream: lzma.LZMADecompressor | None = None
    rest = b""
    begun = False
    while data := rest or file.read(size):
        rest = b""
        if stream is None:
            data = data.lstrip(b"\0")  # padding between two streams
            if not data:
                continue
            stream = lzma.LZMADecompressor(memlimit=LZMA_MEMORY)
            begun = True
        chunk = stream.decompress(data, size)
        while chunk:
            yield chunk
            chunk = b"" if stream.eof or stream.needs_input else stream.decompress(b"", size)
        if stream.eof:
            rest, stream = stream.unused_data, None
    if not begun or stream is not None:
        raise EOFError("the compressed file ends too early")
