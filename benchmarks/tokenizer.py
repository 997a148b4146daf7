"""Training and encoding, ours against others on the same text: `python -m benchmarks.tokenizer --help`.

Every measurement is a process of its own, and contestants take turns, round by round. Training counts the whole
process: Python's start and end, imports, reading Parquet, counting, merging; peak memory is the process's. Ours is run
once more with an empty cache of compiled code, as on a new machine. All split text by GPT-2's pattern.

Encoding is from Parquet on disk to ids, with GPT-2's pattern and the vocabulary that ours has trained. tiktoken and
Hugging Face's library take one text after the other on one thread; ours is measured on one thread, on two, and on two
with the shards written, synced and verified (`shards`). Imports and loading the tokenizer are not counted there.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

PATTERN = "gpt2"
TRAINERS = ("ours", "rustbpe", "tokenizers", "sentencepiece")
ENCODERS = ("ours-1", "ours-2", "shards", "tiktoken", "tokenizers")


def main(
    paths: Annotated[list[Path], typer.Argument(help="Parquet files with a column `text`")],
    vocab: Annotated[list[int], typer.Option(help="vocabularies to train")] = [4096, 32768],  # noqa: B006
    rounds: int = 3,
    trainers: Annotated[str, typer.Option(help="of " + ", ".join(TRAINERS))] = ",".join(TRAINERS),
    encoders: Annotated[str, typer.Option(help="of " + ", ".join(ENCODERS))] = ",".join(ENCODERS),
    out: Annotated[Path, typer.Option(help="the figures as JSON")] = Path("runs/benchmarks/tokenizer.json"),
) -> None:
    """Measures trainers and encoders, each in a process of its own."""
    files = [str(path) for path in paths]
    figures: dict[str, Any] = {"cores": os.cpu_count(), "train": {}, "encode": {}}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = str(Path(folder) / "tokenizer")
        _process("train", "ours", str(vocab[-1]), tokenizer, files)  # compiles, if need be
        for size in vocab:
            rows = {name: [] for name in trainers.split(",") if name}
            for _ in range(rounds):
                for name, row in rows.items():
                    row.append(_process("train", name, str(size), "", files))
            if "ours" in rows:
                rows["ours, nothing compiled"] = [
                    _process("train", "ours", str(size), "", files, cache=f"{folder}/cold-{size}")
                ]
            figures["train"][size] = rows
            print(f"\ntraining, vocabulary {size:,}: seconds, median (range); peak memory")
            for name, row in rows.items():
                print(f"  {name:24}{_median(row, 'seconds'):28}{statistics.median(r['mb'] for r in row):6.0f} MB")
        rows = {name: [] for name in encoders.split(",") if name}
        for _ in range(rounds):
            for name, row in rows.items():
                row.append(_process("encode", name, "", tokenizer, files))
        figures["encode"] = rows
        print("\nencoding: MB/s, median (range); peak memory")
        for name, row in rows.items():
            print(f"  {name:24}{_median(row, 'mb_per_second'):28}{statistics.median(r['mb'] for r in row):6.0f} MB")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")


def _median(row: list[dict[str, float]], key: str) -> str:
    values = [figures[key] for figures in row]
    return f"{statistics.median(values):8.2f} ({min(values):.2f} to {max(values):.2f})"


def _process(what: str, name: str, size: str, folder: str, files: list[str], cache: str = "") -> dict[str, float]:
    """What `_measure` prints in a new process, and how long that process took."""
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    begun = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.tokenizer", "--measure", what, name, size, folder, *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{what} by {name} failed: {done.stderr.strip().splitlines()[-1]}")
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def _measure(what: str, name: str, size: str, folder: str, files: list[str]) -> None:
    figures = _train(name, int(size), folder, files) if what == "train" else _encode(name, folder, files)
    print(json.dumps({**figures, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def _texts(files: list[str]) -> Iterator[str]:
    from llm.corpus.documents import read_column

    return (text for file in files for text in read_column(Path(file), "text"))


def _train(name: str, size: int, folder: str, files: list[str]) -> dict[str, float]:
    if name == "ours":
        from llm.corpus.documents import read_utf8
        from llm.tokenizer import bpe
        from llm.tokenizer.word_table import Batch
        from llm.tokenizer.words import Texts, count_words

        texts = Texts(lambda: _texts(files), lambda: (Batch(*batch) for f in files for batch in read_utf8(Path(f))))
        merges = bpe.train(count_words(texts, PATTERN), size - 257)
        if folder:
            from llm.tokenizer.byte_bpe import ByteBPE
            from llm.tokenizer.config import END_OF_TEXT, PATTERNS

            ByteBPE.from_merges(merges, PATTERNS[PATTERN], [END_OF_TEXT]).save(Path(folder))
    elif name == "rustbpe":
        import rustbpe

        from llm.tokenizer.patterns import GPT2

        rustbpe.Tokenizer().train_from_iterator(_texts(files), size, pattern=GPT2)
    elif name == "tokenizers":
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        theirs = Tokenizer(models.BPE())
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's pattern
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        theirs.train_from_iterator(_texts(files), trainer)
    else:
        from llm.tokenizer import sentencepiece

        sentencepiece.train(_texts(files), "bpe", size, ("<|endoftext|>",))
    return {}


def _encode(name: str, folder: str, files: list[str]) -> dict[str, float]:
    from llm.corpus.documents import read_utf8
    from llm.tokenizer.bulk import encode_batches
    from llm.tokenizer.tokenizer import Tokenizer
    from llm.tokenizer.word_table import Batch, batch

    tokenizer = Tokenizer.load(Path(folder))
    work: Callable[[], object]
    if name in ("ours-1", "ours-2", "shards"):
        threads = 1 if name == "ours-1" else 2
        list(encode_batches([batch([b"a"])], tokenizer, compiled=True, threads=threads))  # loads the compiled code
        encoded = encode_batches((Batch(*b) for f in files for b in read_utf8(Path(f))), tokenizer, True, threads)
        if name == "shards":
            from llm.shards import ShardSet, write_index, write_shards

            out = Path(folder).parent / "shards"

            def work() -> object:
                write_index(out, write_shards(encoded, tokenizer, out, "part", 1 << 24), tokenizer)
                return ShardSet.open(out, tokenizer.fingerprint)
        else:

            def work() -> object:
                return [part.ids.size for part in encoded]

    elif name == "tiktoken":
        encoding = tokenizer._encoding  # type: ignore[attr-defined]

        def work() -> object:
            return [encoding.encode_to_numpy(text, disallowed_special=()).size for text in _texts(files)]

    else:
        from tokenizers import Tokenizer as Theirs

        theirs = Theirs.from_file(str(Path(folder) / "tokenizer.json"))

        def work() -> object:
            return [len(theirs.encode(text).ids) for text in _texts(files)]

    size = sum(len(text) for f in files for text, _ in read_utf8(Path(f)))
    begun = time.perf_counter()
    work()
    return {"mb_per_second": size / 1e6 / (time.perf_counter() - begun)}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        _measure(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5], sys.argv[6:])
    else:
        typer.run(main)
