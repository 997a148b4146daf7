"""Is a file UTF-8 text? The same rule for every kind of file, over its beginning and over the whole of it.

Malformed sequences become U+FFFD and are counted. A file is refused where they are so many that it is binary, or text
in another encoding: more than one in ten characters; or at least three, more than one in 200 characters, and most of
all characters beyond ASCII (a page in Latin-1 has few letters with accents, and not one of them is UTF-8).
"""

from collections.abc import Iterator

import charset_normalizer

from llm.corpus.normalise import decode
from llm.errors import WordmillError

SNIFF = 1 << 16  # bytes at a file's beginning that are looked at before anything is read
UNDECODABLE = 0.1  # share of malformed sequences among all characters
FEW = 0.005  # the same, where most characters beyond ASCII are malformed
SAMPLE = 1 << 14  # bytes of which the encoding is guessed
ZEROS = 0.2  # share of NULs that tells UTF-16 from a binary file


class Utf8Check:
    """Of one file, which `name` stands for in messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._characters = self._beyond_ascii = self._replaced = 0
        self._sample = bytearray()

    def beginning(self, chunks: Iterator[bytes], zeros: bool = False) -> Iterator[bytes]:
        """The chunks, once the first has been seen to be text. Raises WordmillError; for a NUL unless `zeros`."""
        first = next(chunks, b"")
        head = first[:SNIFF]
        if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
            raise WordmillError(f"{self.name}: is UTF-16; convert it to UTF-8, as with `iconv -f utf-16 -t utf-8`")
        filled = head.rstrip(b"\0")
        if filled.count(b"\0") > len(filled) * ZEROS and self._is_text(filled):
            kind = "utf-16le" if filled[1::2].count(b"\0") > filled[::2].count(b"\0") else "utf-16be"
            raise WordmillError(f"{self.name}: looks like UTF-16; convert it, as with `iconv -f {kind} -t utf-8`")
        if b"\0" in filled and not zeros:
            raise self.binary()
        beginning = Utf8Check(self.name)
        beginning.decode(head)
        beginning.judge()
        yield first
        yield from chunks

    def _is_text(self, data: bytes) -> bool:
        return data.replace(b"\0", b"").decode("latin-1").replace("\n", "").replace("\r", "").isprintable()

    def decode(self, data: bytes) -> tuple[str, int]:
        """`normalise.decode`, counted."""
        text, replaced = decode(data)
        self.add(text, replaced)
        if replaced and len(self._sample) < SAMPLE:
            self._sample += data[:SAMPLE] + b"\n"
        return text, replaced

    def add(self, text: str, replaced: int) -> None:
        """Count a text that was decoded elsewhere."""
        self._characters += len(text)
        self._replaced += replaced
        if not text.isascii():
            self._beyond_ascii += len(text) - len(text.encode("ascii", "ignore"))

    def judge(self) -> None:
        """Raises WordmillError where what was decoded is not UTF-8."""
        replaced, characters = self._replaced, self._characters
        many = replaced > max(1, characters * UNDECODABLE)  # one may be a character that the end cuts
        other = replaced >= 3 and replaced > characters * FEW and 2 * replaced > self._beyond_ascii
        if many or other:
            guess = charset_normalizer.from_bytes(bytes(self._sample[:SAMPLE])).best() if self._sample else None
            encoding = guess.encoding.replace("_", "-") if guess and "utf" not in guess.encoding else ""
            hint = f"it may be {encoding} (`iconv -f {encoding} -t utf-8`)" if encoding else "it may be binary"
            raise WordmillError(
                f"{self.name}: not a text file: {replaced / characters:.1%} of it is not UTF-8; {hint}; "
                "convert it to UTF-8, or leave it out"
            )

    def binary(self) -> WordmillError:
        """For a file with NULs inside."""
        return WordmillError(f"{self.name}: not a text file (holds NUL bytes); leave it out, or convert it to UTF-8")
