"""Damages HTTP answers, corpus files, preference files and shards, and reads them.

    python -m tests.fuzz.corpora SEED [TIMES]

works in the current folder and prints how many reads of each kind went well and how many ended with one clean line.
Anything else ends it with a traceback that names the seed and the number of the mutation.
"""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from llm.corpus import url
from llm.corpus.config import CorpusConfig
from llm.corpus.files import units
from llm.errors import WordmillError, printable
from llm.preference_account import Account
from llm.preference_files import from_files
from llm.shards import ShardSet, write_index, write_shards
from llm.tokenizer.bulk import encode_batches
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import END_OF_TEXT, PATTERNS
from llm.tokenizer.words import joined
from tests.llm.corpus.raw_server import raw_server

ROOM = 2_500_000_000  # bytes of address space beyond what is taken when it begins
SECONDS = 20  # of processor time for one read
ABSURD = [
    b"9" * 30, b"9" * 5000, b"-1", b"0", "²".encode(), b"\x00", b"\xff\xfe", b"[" * 50_000, b"{" * 3, b"\r\n", b"\n",
    b'"', b"\\", b",", b"null", b"NaN", b"1e999", b"\x1b[2J", "\u202e".encode(), b"\xed\xa0\x80", b"\\ud800", b"]",
    b"}",    b" " * 70_000, b"Infinity", b"http://[::1", b"bytes 5-4/3", b"W/", b"chunked", b"gzip", b"\xef\xbb\xbf",
]  # fmt: skip


def damage(data: bytes, draw: random.Random) -> bytes:
    """One to three changes: bits flipped, parts cut, repeated, moved or replaced by something absurd."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice([0, 1, 2, 8, 64, 1000]))
        data = draw.choice(
            [
                lambda d, a, e: d[:a] + draw.choice(ABSURD) + d[a:],
                lambda d, a, e: d[:a] + draw.choice(ABSURD) + d[e:],
                lambda d, a, e: d[:a] + d[e:],
                lambda d, a, e: d[:a] + d[a:e] * 3 + d[e:],
                lambda d, a, e: d[:a],
                lambda d, a, e: d[:a] + bytes(byte ^ 1 << draw.randrange(8) for byte in d[a:e]) + d[e:],
                lambda d, a, e: d[:a] + draw.randbytes(e - a) + d[e:],
            ]
        )(data, at, end)
    return data


TEXTS = [f"Text {number}: größer, “quoted”, 你好." * 3 for number in range(40)]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress
}  # fmt: skip


def corpus_files() -> dict[str, bytes]:
    """A good file of each kind, in each packing."""
    table = io.StringIO()
    csv.writer(table).writerows([["n", "text"], *enumerate(TEXTS)])
    parquet = io.BytesIO()
    rows = pa.table({"text": TEXTS, "meta": [{"body": text} for text in TEXTS], "tags": [["a"]] * len(TEXTS)})
    pq.write_table(rows, parquet, row_group_size=16)
    plain = {
        ".txt": "\n\n".join(TEXTS).encode(),
        ".md": "\n".join(TEXTS).encode(),
        ".jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode(),
        ".json": json.dumps([{"text": text, "n": [1.5, None]} for text in TEXTS], indent=1).encode(),
        ".csv": table.getvalue().encode(),
        ".tsv": table.getvalue().replace(",", "\t").encode(),
        ".parquet": parquet.getvalue(),
    }
    return {f"a{kind}{packing}": pack(data) for kind, data in plain.items() for packing, pack in PACK.items()}


def read_file(path: Path, draw: random.Random) -> None:
    config = CorpusConfig(
        source="files",
        paths=(str(path),),
        documents=0,
        text_field=draw.choice(["text", "text", "text", "meta.body", "tags"]),
        split_text=draw.choice(["file", "line", "blank_lines", "separator"]),
        bad_rows=draw.choice(["error", "skip"]),
        max_document_bytes=draw.choice([1 << 28, 1000]),
    )
    for unit in units(config, Path()):
        for document in unit.documents():
            str(document)


PAIRS = [
    {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
    {"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
     "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]},
    {"instruction": "do", "input": "x", "chosen": "y", "rejected": "n"},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
]  # fmt: skip

BODY = b"words and more words\n" * 50
HEADS = [
    f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\nETag: \"x\"\r\n\r\n".encode() + BODY,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
    f"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-{len(BODY) - 1}/{len(BODY)}\r\n\r\n".encode() + BODY,
    b"HTTP/1.1 302 Found\r\nLocation: /data/other.txt\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: Mon, 01 Jan 2001 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 416 Range\r\nContent-Range: bytes */1050\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not found\r\nContent-Length: 0\r\n\r\n",
]  # fmt: skip


class Fuzzer:
    """Counts how reads end."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()

    def attempt(self, kind: str, read: Callable[[], object]) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + SECONDS, resource.RLIM_INFINITY))
        try:
            read()
            self.counts[f"{kind} read"] += 1
        except WordmillError as error:
            if printable(str(error)) != str(error) or len(str(error)) > 3000:
                raise AssertionError(f"not one clean line: {str(error)!r}") from error
            self.counts[f"{kind} errors"] += 1

    def files(self, times: int) -> None:
        for name, good in corpus_files().items():
            for _ in range(times):
                path = Path(name)
                path.write_bytes(damage(good, self.draw))
                self.attempt("files", lambda path=path: read_file(path, self.draw))  # type: ignore[misc]

    def pairs(self, times: int) -> None:
        for record in PAIRS:
            lines = (json.dumps(record) + "\n") * 5
            table = io.BytesIO()
            pq.write_table(pa.Table.from_pylist([record] * 5), table)
            goods = {
                "p.jsonl": lines.encode(),
                "p.json": f"[{lines.strip().replace(chr(10), ',')}]".encode(),
                "p.parquet": table.getvalue(),
            }
            for name, good in goods.items():
                for _ in range(times):
                    Path(name).write_bytes(damage(good, self.draw))
                    self.attempt("pairs", lambda name=name: list(from_files((name,), "auto", Path(), Account())))  # type: ignore[misc]

    def shards(self, times: int) -> None:
        tokenizer = ByteBPE.from_merges([(104, 101)], PATTERNS["cl100k"], (END_OF_TEXT,))
        folder = Path("shards")
        encoded = encode_batches(joined(TEXTS), tokenizer, compiled=True, threads=1)
        write_index(folder, write_shards(encoded, tokenizer, folder, "part", 500), tokenizer)
        goods = {path: path.read_bytes() for path in folder.iterdir()}

        def read() -> None:
            shards = ShardSet.open(folder, verify=self.draw.random() < 0.5)
            shards.token_counts()
            for number in range(len(shards.documents)):
                shards.document(number)

        for number in range(times):
            path = folder / "index.json" if number % 2 else self.draw.choice(sorted(goods))
            path.write_bytes(damage(goods[path], self.draw))
            self.attempt("shards", read)
            path.write_bytes(goods[path])

    def answers(self, times: int) -> None:
        url.SILENCE, url.SLOW_SECONDS = 0.5, 1.0
        for _ in range(times):
            answers = [damage(self.draw.choice(HEADS), self.draw) for _ in range(self.draw.randint(1, 3))]
            for left in Path().glob("words*"):
                left.unlink()
            if self.draw.random() < 0.3:
                Path("words.txt.part").write_bytes(BODY[: self.draw.randrange(len(BODY))])
            with raw_server(*answers, then=b"HTTP/1.1 404 over\r\nContent-Length: 0\r\n\r\n") as server:
                self.attempt("answers", partial(fetch, server.url))


def fetch(address: str) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    url.download(address, digest, Path("words.txt"), wait=lambda seconds: None, limit=10_000_000)


def main(seed: int, times: int = 1) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    fuzzer = Fuzzer(seed)
    fuzzer.files(40 * times)
    fuzzer.pairs(30 * times)
    fuzzer.shards(300 * times)
    fuzzer.answers(300 * times)
    for name, count in sorted(fuzzer.counts.items()):
        print(name, count)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
