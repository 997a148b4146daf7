"""The public encodings of OpenAI's models, by tiktoken's names, from the files that tiktoken keeps.

A file is looked for in TIKTOKEN_CACHE_DIR (else in `tiktoken` in the user's cache), under the name that tiktoken gives
it, the SHA-1 of its address, and is believed only with the SHA-256 that stands here. What is not there is downloaded
once and left there. tiktoken's own download waits without end for a network that
does not answer; this one gives up after `PATIENCE` seconds of silence.
"""

import base64
import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from llm.errors import WordmillError
from llm.tokenizer import huggingface
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.foreign import merge_files
from llm.tokenizer.huggingface import Definition
from llm.tokenizer.patterns import CL100K, GPT2, O200K
from llm.tokenizer.tokenizer import END_OF_TEXT
from llm.user_cache import user_cache

ADDRESS = "https://openaipublic.blob.core.windows.net/"
PATIENCE = 8.0  # seconds without an answer
LARGEST = 16_000_000  # bytes that are taken of an answer; the largest encoding has 3.6 million


class Public(NamedTuple):
    """What makes an encoding."""

    files: dict[str, str]  # below ADDRESS, with their SHA-256
    pattern: str
    special_tokens: dict[str, int]


ENCODINGS = {
    "gpt2": Public(
        {
            "gpt-2/encodings/main/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            "gpt-2/encodings/main/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        },
        GPT2,
        {END_OF_TEXT: 50256},
    ),
    "r50k_base": Public(
        {"encodings/r50k_base.tiktoken": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"},
        GPT2,
        {END_OF_TEXT: 50256},
    ),
    "p50k_base": Public(
        {"encodings/p50k_base.tiktoken": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069"},
        GPT2,
        {END_OF_TEXT: 50256},
    ),
    "cl100k_base": Public(
        {"encodings/cl100k_base.tiktoken": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"},
        CL100K,
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Public(
        {"encodings/o200k_base.tiktoken": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"},
        O200K,
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
    ),
}


def public(name: str) -> ByteBPE:
    """The encoding of that name. Raises WordmillError if its files are not at hand and cannot be downloaded."""
    files, pattern, special_tokens = ENCODINGS[name]
    contents = [_content(name, ADDRESS + path, sha256) for path, sha256 in files.items()]
    if len(contents) == 2:
        return ByteBPE(merge_files(contents[0], contents[1], name))
    tokens = ranked(contents[0])
    return ByteBPE(Definition(tokens, huggingface.merges_of(tokens), pattern, special_tokens))


def ranked(content: bytes) -> tuple[bytes, ...]:
    """The tokens of a .tiktoken file by id: a line for each, in base64, and its id after a space."""
    table = {int(number): base64.b64decode(token) for token, number in (line.split() for line in content.splitlines())}
    return tuple(table.get(number, b"") for number in range(max(table) + 1))


def cache_file(address: str) -> Path:
    """Where tiktoken keeps what it downloaded from `address`."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(named) if named else user_cache("tiktoken")
    return folder / hashlib.sha1(address.encode()).hexdigest()


def _content(name: str, address: str, sha256: str) -> bytes:
    path = cache_file(address)
    if path.exists() and hashlib.sha256(content := path.read_bytes()).hexdigest() == sha256:
        return content
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as response:
            content = response.read(LARGEST)
    except (urllib.error.URLError, OSError) as error:
        raise WordmillError(
            f"tokenizer.encoding: {name} is not on this machine and cannot be downloaded "
            f"({getattr(error, 'reason', error)}); put {address} into the folder TIKTOKEN_CACHE_DIR as {path.name}"
        ) from None
    if (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise WordmillError(f"{address}: wrong SHA-256: expected {sha256}, got {got}; something on the way changes it")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
    return content
