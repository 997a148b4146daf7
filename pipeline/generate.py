"""`wordmill generate`: prompts in, texts out, streamed where a person looks on."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from llm.compiled_decoder import fastest
from llm.compute import Compute, ComputeConfig
from llm.decoder import Decoder
from llm.errors import WordmillError
from llm.generate import check_fit
from llm.model import folder
from llm.model.hf_configs import read_config
from llm.streaming import Piece, Wanted, write
from llm.tokenizer.tokenizer import Tokenizer
from pipeline.warm_up import warm_up

AT_ONCE = 16  # texts


def prompts(given: Sequence[str], file: Path | None, whole: bool, standard_input: TextIO) -> list[str]:
    """Those given, or a line each of `file` or, without either, of standard input. Raises WordmillError.

    Lines end at a line feed, with or without a carriage return before it. A byte order mark is left out.
    """
    if given and file:
        raise WordmillError("prompts as arguments and --file: give one of them")
    if given:
        for number, text in enumerate(given, start=1):
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise WordmillError(f"prompt {number}: not UTF-8 text")
        return list(given)
    try:
        from_file = file is not None and file != Path("-")
        content = file.read_bytes() if file and from_file else standard_input.buffer.read()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise WordmillError(f"--file: {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise WordmillError(f"{file or 'standard input'}: not UTF-8 text") from None
    lines = [text] if whole else text.split("\n")
    found = [line.removesuffix("\n").removesuffix("\r") for line in lines]
    found = found if whole else [line for line in found if line.strip()]
    if not any(found):
        raise WordmillError(f"{file or 'standard input'}: no prompt in it")
    return found


@dataclass(frozen=True)
class Writer:
    """A model that continues texts as `wanted`: `count` times each, with the seeds `seed`, `seed` + 1 and so on."""

    decoder: Decoder
    tokenizer: Tokenizer
    wanted: Wanted
    seed: int
    count: int
    as_json: bool

    def write(self, texts: Sequence[str]) -> None:
        """Print the continuations. Raises WordmillError for prompts that do not fit."""
        encoded = [[self.tokenizer.begin_of_text, *ids] for ids in self.tokenizer.encode_batch(texts)]
        check_fit(encoded, self.decoder.config.block_size, self.wanted.past_context)
        jobs = [
            (text, ids, self.seed + again)
            for text, ids in zip(texts, encoded, strict=True)
            for again in range(self.count)
        ]
        for start in range(0, len(jobs), AT_ONCE):
            part = jobs[start : start + AT_ONCE]
            seeds = [seed for _, _, seed in part]
            pieces = write(self.decoder, self.tokenizer, [ids for _, ids, _ in part], seeds, self.wanted)
            if len(jobs) == 1 and sys.stdout.isatty() and not self.as_json:
                _stream(texts[0], pieces)
                continue
            whole = [Piece() for _ in part]
            for row, piece in pieces:
                whole[row] += piece
            for (text, _, seed), piece in zip(part, whole, strict=True):
                print(json.dumps(_record(text, seed, piece), ensure_ascii=False) if self.as_json else text + piece.text)

    def session(self, lines: Iterable[str]) -> None:
        """Write a continuation of each line as it comes.

        A mistake in one is printed, and the session goes on. Ctrl-C ends a continuation, not the session.
        """
        for line in lines:
            if not line.strip():
                continue
            try:
                self.write([line])
            except WordmillError as error:
                print(f"wordmill: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                continue


def generate(
    model: Path,
    given: Sequence[str],
    file: Path | None,
    whole: bool,
    count: int,
    seed: int,
    wanted: Wanted,
    config: ComputeConfig,
    as_json: bool,
) -> None:
    """Continue prompts. If there are none and a person sits at the terminal, continue each line that is typed.

    Raises WordmillError for prompts that are missing or do not fit, and for a model that cannot be loaded.
    """
    by_hand = not given and file is None and sys.stdin.isatty()
    texts = [] if by_hand else prompts(given, file, whole, sys.stdin)
    read_config(model)  # what holds no model is named as such, and not for its missing tokenizer
    tokenizer = Tokenizer.load(model)
    decoder = fastest(folder.load(model, vocab_size=tokenizer.vocab_size), Compute(config))
    writer = Writer(decoder, tokenizer, wanted, seed, count, as_json)
    warm_up(decoder)
    if by_hand:
        print("Type the beginning of a text and press Enter. Ctrl-D ends the session.", file=sys.stderr)
        writer.session(typed_lines())
    else:
        writer.write(texts)


def typed_lines() -> Iterator[str]:
    """Lines that a person types, until Ctrl-D."""
    import readline  # noqa: F401  (with it, `input` lets a line be edited and called again)

    while True:
        try:
            yield input("> ")
        except UnicodeDecodeError:
            print("wordmill: not UTF-8 text", file=sys.stderr)
        except EOFError:
            print()
            return


def _stream(prompt: str, pieces: Iterator[tuple[int, Piece]]) -> None:
    print(prompt, end="", flush=True)
    try:
        for _, piece in pieces:
            print(piece.text, end="", flush=True)
    finally:
        print()  # also after Ctrl-C


def _record(prompt: str, seed: int, piece: Piece) -> dict[str, Any]:
    record: dict[str, Any] = {"prompt": prompt, "seed": seed, "text": piece.text, "finish_reason": piece.finish}
    if piece.tokens:
        record["tokens"] = [{"text": one.text, "logprob": one.logprob, "top": one.top} for one in piece.tokens]
    return record
