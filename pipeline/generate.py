"""`wordmill generate`: prompts in, texts out, streamed where a person looks on."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from llm.compiled_decoder import fastest
from llm.compute import Compute, ComputeConfig
from llm.errors import WordmillError
from llm.generate import check_fit
from llm.model import folder
from llm.streaming import Piece, Wanted, write
from llm.tokenizer.tokenizer import Tokenizer

AT_ONCE = 16  # texts


def prompts(given: Sequence[str], file: Path | None, whole: bool, standard_input: TextIO) -> list[str]:
    """Those given, or a line each of `file` or, without either, of standard input. Raises WordmillError."""
    if given and file:
        raise WordmillError("prompts as arguments and --file: give one of them")
    if given:
        return list(given)
    try:
        if file is not None and file != Path("-"):
            text = file.read_text(encoding="utf-8")
        elif standard_input.isatty():
            raise WordmillError('no prompt; give one, such as wordmill generate "Once there was", or --file')
        else:
            text = standard_input.read()
    except OSError as error:
        raise WordmillError(f"--file: {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise WordmillError(f"{file or 'standard input'}: not UTF-8 text") from None
    found = [text.removesuffix("\n")] if whole else [line for line in text.splitlines() if line.strip()]
    if not any(found):
        raise WordmillError(f"{file or 'standard input'}: no prompt in it")
    return found


def generate(
    model: Path, texts: Sequence[str], count: int, seed: int, wanted: Wanted, config: ComputeConfig, as_json: bool
) -> None:
    """Print `count` continuations of each of `texts`, with the seeds `seed`, `seed` + 1 and so on.

    Raises WordmillError for a model that cannot be loaded and for prompts that do not fit.
    """
    tokenizer = Tokenizer.load(model)
    loaded = folder.load(model, vocab_size=tokenizer.vocab_size)
    encoded = [[tokenizer.begin_of_text, *ids] for ids in tokenizer.encode_batch(texts)]
    decoder = fastest(loaded, Compute(config))
    check_fit(encoded, decoder.config.block_size, wanted.past_context)
    jobs = [(text, ids, seed + again) for text, ids in zip(texts, encoded, strict=True) for again in range(count)]
    for start in range(0, len(jobs), AT_ONCE):
        part = jobs[start : start + AT_ONCE]
        pieces = write(decoder, tokenizer, [ids for _, ids, _ in part], [seed for _, _, seed in part], wanted)
        if len(jobs) == 1 and sys.stdout.isatty() and not as_json:
            _stream(texts[0], pieces)
            continue
        whole = [Piece() for _ in part]
        for row, piece in pieces:
            whole[row].text += piece.text
            whole[row].tokens += piece.tokens
            whole[row].finish = piece.finish
        for (text, _, seed_), piece in zip(part, whole, strict=True):
            print(json.dumps(_record(text, seed_, piece), ensure_ascii=False) if as_json else text + piece.text)


def _stream(prompt: str, pieces: Iterator[tuple[int, Piece]]) -> None:
    print(prompt, end="", flush=True)
    for _, piece in pieces:
        print(piece.text, end="", flush=True)
    print()


def _record(prompt: str, seed: int, piece: Piece) -> dict[str, Any]:
    record: dict[str, Any] = {"prompt": prompt, "seed": seed, "text": piece.text, "finish_reason": piece.finish}
    if piece.tokens:
        record["tokens"] = [{"text": one.text, "logprob": one.logprob, "top": one.top} for one in piece.tokens]
    return record
