"""Plain text into documents: pieces of bytes, each bounded, from a stream of chunks.

A piece that is longer than the limit is given as None once it ends, and is not held in memory until then.
"""

from collections.abc import Iterator

Piece = bytes | None


def whole(chunks: Iterator[bytes], limit: int) -> Iterator[Piece]:
    """All of it as one piece."""
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > limit:
            yield None
            return
    yield bytes(data)


def between(chunks: Iterator[bytes], separator: bytes, limit: int) -> Iterator[Piece]:
    """What stands between separators, the last piece included."""
    rest = bytearray()
    too_long = False
    for chunk in chunks:
        searched = max(0, len(rest) - len(separator) + 1)
        rest += chunk
        if rest.find(separator, searched) >= 0:
            *pieces, last = bytes(rest).split(separator)
            if too_long:
                pieces[0] = None  # type: ignore[call-overload]
                too_long = False
            for piece in pieces:
                yield piece if piece is not None and len(piece) <= limit else None
            rest = bytearray(last)
        if len(rest) > limit:
            too_long = True
        if too_long:
            del rest[: len(rest) - len(separator) + 1]  # what is left may begin a separator
    yield None if too_long else bytes(rest)


def paragraphs(lines: Iterator[Piece], limit: int) -> Iterator[Piece]:
    """Lines joined up to the next blank one."""
    block: list[bytes] = []
    size = 0
    too_long = False
    for line in lines:
        if line is None or line.strip():
            size += len(line or b"") + 1
            if line is None or size - 1 > limit:
                too_long = True
                block = []
            if line is not None and not too_long:
                block.append(line)
            continue
        if block or too_long:
            yield None if too_long else b"\n".join(block)
        block, size, too_long = [], 0, False
    if block or too_long:
        yield None if too_long else b"\n".join(block)


def line_ends(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes with \\n for \\r\\n and \\r, also where a chunk ends between the two."""
    held = b""
    for chunk in chunks:
        chunk = held + chunk
        held = b"\r" if chunk.endswith(b"\r") else b""
        yield chunk[: len(chunk) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if held:
        yield b"\n"
