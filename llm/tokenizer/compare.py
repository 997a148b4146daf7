"""Several tokenizers on the same text, side by side."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from llm.tokenizer.tokenizer import Tokenizer


class Row(NamedTuple):
    """What one tokenizer makes of a text."""

    name: str
    vocab_size: int
    bytes_per_token: float
    unknown: int  # tokens that stand for nothing of the text
    parts: int  # tokens that are only a part of a character: what the vocabulary has no whole token for
    vocabulary_used: float  # share of it that occurs in the text
    lossy: int  # documents that do not come back as they were

    def figures(self) -> dict[str, float]:
        """All but the name."""
        return {key: value for key, value in self._asdict().items() if key != "name"}


def measure(name: str, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Row, float]:
    """The row of one tokenizer, and how many MB of text it encodes a second (which no two runs agree on)."""
    began = time.perf_counter()
    encoded = [tokenizer.encode_array(text) for text in texts]
    seconds = time.perf_counter() - began
    text_bytes = sum(len(text.encode()) for text in texts)
    rows = [ids.tolist() for ids in encoded]
    tokens = tokenizer.tokens
    not_text = set(tokenizer.special_tokens.values())
    partial = {number for number, token in enumerate(tokens) if token and not _whole(token)}
    row = Row(
        name=name,
        vocab_size=tokenizer.vocab_size,
        bytes_per_token=text_bytes / max(1, sum(map(len, rows))),
        unknown=sum(number in not_text for ids in rows for number in ids),
        parts=sum(number in partial for ids in rows for number in ids),
        vocabulary_used=len({number for ids in rows for number in ids}) / tokenizer.vocab_size,
        lossy=sum(tokenizer.decode_bytes(ids) != text.encode() for ids, text in zip(rows, texts, strict=True)),
    )
    return row, text_bytes / 1e6 / max(seconds, 1e-9)


def table(rows: Sequence[Row], speeds: Sequence[float]) -> str:
    """The rows for the log, speeds (MB/s) included."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'tokenizer':{width}}  vocabulary  bytes/token  unknown    parts   used  round trip    MB/s"]
    for row, speed in zip(rows, speeds, strict=True):
        lines.append(
            f"{row.name:{width}}  {row.vocab_size:10,}  {row.bytes_per_token:11.3f}  {row.unknown:7,}  {row.parts:7,}  "
            f"{row.vocabulary_used:5.1%}  {f'{row.lossy:,} lost' if row.lossy else 'exact':>10}  {speed:6.1f}"
        )
    return "\n".join(lines)


def _whole(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
