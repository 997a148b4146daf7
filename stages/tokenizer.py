"""Stage `tokenizer`: a tokenizer trained on the training split, or brought from elsewhere.

Reads data/corpus/train/ (and val/ for the figures), writes data/tokenizer/: the tokenizer's own files, which
`transformers` opens too, and manifest.json, which says what it was made from. Figures go to reports/tokenizer.json,
with those of the kinds in `tokenizer.compare` beside them: made from the same text, measured on the same text.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm.corpus.documents import documents, manifest, sample, utf8_batches
from llm.progress import progress
from llm.tokenizer.compare import measure, table
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.diagnostics import longest_tokens
from llm.tokenizer.tokenizer import files
from llm.tokenizer.train import Made, make
from llm.tokenizer.word_table import Batch
from llm.tokenizer.words import Texts
from stages.metrics import write_json
from stages.stage import Stage, main

CORPUS = Path("data/corpus")
OUT = Path("data/tokenizer")
HELD_OUT = 1000  # validation documents at most, for bytes per token


@dataclass(frozen=True)
class Params:
    """The sections of params.yaml that this stage reads."""

    tokenizer: TokenizerConfig


def run(params: Params, stage: Stage) -> None:
    """Make it, save it, and tell what came out."""
    config = params.tokenizer
    corpus = manifest(CORPUS)
    made = _make(config, corpus)
    tokenizer = made.tokenizer
    tokenizer.save(OUT)
    trained = "bytes" in made.source
    content: dict[str, Any] = {"settings": asdict(config), "tokenizer": tokenizer.fingerprint}
    if trained:
        split = corpus["splits"]["train"]
        of = {"corpus": corpus["digest"], "split": "train"}
        of |= {"split_bytes": split["bytes"], "split_documents": split["documents"]}
        content["trained_on"] = {**of, **made.source}
    else:
        content["loaded_from"] = made.source
    write_json(content, OUT / "manifest.json")

    held_out = sample(CORPUS / "val", HELD_OUT)
    row, speed = measure(config.name, tokenizer, held_out)
    figures: dict[str, float] = {
        "vocab_size": row.vocab_size,
        "val_bytes_per_token": row.bytes_per_token,
        "val_vocabulary_used": row.vocabulary_used,
        "longest_token_bytes": max(map(len, tokenizer.tokens)),
    }
    counts = {"trained_bytes": "bytes", "distinct_words": "distinct_words"}
    figures |= {name: made.source[key] for name, key in counts.items() if key in made.source}
    longest = longest_tokens(tokenizer, 20)
    rows, speeds = [row], [speed]
    for name in config.compare:
        other, other_speed = measure(name, _make(config.variant(name), corpus).tokenizer, held_out)
        rows.append(other)
        speeds.append(other_speed)
    compared = {"compare": {other.name: other.figures() for other in rows}} if config.compare else {}
    write_json({**figures, "longest_tokens": longest, **compared}, Path("reports/tokenizer.json"))
    stage.metrics({name: float(value) for name, value in figures.items()})
    names = ["encode_mb_per_second", *(f"encode_mb_per_second/{re.sub('[^a-z0-9]', '_', n)}" for n in config.compare)]
    stage.metrics(dict(zip(names, speeds, strict=True)))
    for name in (*files(OUT), "manifest.json"):
        stage.artifact(OUT / name, "tokenizer")
    origin = f"from {made.source['bytes']:,} bytes" if trained else f"of kind {config.kind}"
    print(
        f"tokenizer: {tokenizer.vocab_size:,} tokens {origin}, {row.bytes_per_token:.3f} bytes per token on val; "
        f"longest: {longest[:8]}",
        flush=True,
    )
    if config.compare:
        print(table(rows, speeds), flush=True)


def _make(config: TokenizerConfig, corpus: dict[str, Any]) -> Made:
    with progress(total=corpus["splits"]["train"]["bytes"], unit="B", label="tokenizer: reading") as bar:

        def strings() -> Iterator[str]:
            for text in documents(CORPUS / "train"):
                yield text
                bar.update(len(text.encode()))

        def batches() -> Iterator[Batch]:
            for text, ends in utf8_batches(CORPUS / "train"):
                yield Batch(text, ends)
                bar.update(len(text))

        return make(config, Texts(strings, batches))


if __name__ == "__main__":
    main("tokenizer", Params, run)
