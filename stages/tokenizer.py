"""Stage `tokenizer`: a tokenizer trained on the training split.

Reads data/corpus/train/ (and val/ for the figures), writes data/tokenizer/: tokenizer.json and tokenizer_config.json,
which `transformers` opens too, and manifest.json, which says what it was trained on. Figures go to
reports/tokenizer.json.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from llm.corpus.documents import documents, manifest, sample
from llm.progress import progress
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.diagnostics import longest_tokens
from llm.tokenizer.train import train
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
    """Train, save, and tell what came out."""
    config = params.tokenizer
    corpus = manifest(CORPUS)

    def texts() -> Iterator[str]:
        total = corpus["splits"]["train"]["documents"]
        return iter(progress(documents(CORPUS / "train"), total=total, unit="documents", label="tokenizer: reading"))

    with progress(total=config.vocab_size - 256 - len(config.special_tokens), unit="merges", label="tokenizer") as bar:
        trained = train(config, texts, bar.update)
    tokenizer = trained.tokenizer
    tokenizer.save(OUT)
    content = {
        "settings": asdict(config),
        "tokenizer": tokenizer.fingerprint,
        "trained_on": {
            "corpus": corpus["digest"],
            "split": "train",
            "split_bytes": corpus["splits"]["train"]["bytes"],
            "split_documents": corpus["splits"]["train"]["documents"],
            "bytes": trained.text_bytes,
            "words": trained.words,
            "distinct_words": trained.distinct_words,
        },
    }
    write_json(content, OUT / "manifest.json")

    held_out = sample(CORPUS / "val", HELD_OUT)
    ids = [tokenizer.encode(text) for text in held_out]
    figures = {
        "vocab_size": tokenizer.vocab_size,
        "trained_bytes": trained.text_bytes,
        "distinct_words": trained.distinct_words,
        "val_bytes_per_token": sum(len(text.encode()) for text in held_out) / sum(map(len, ids)),
        "val_vocabulary_used": len({number for row in ids for number in row}) / tokenizer.vocab_size,
        "longest_token_bytes": max(map(len, tokenizer.definition.tokens)),
    }
    longest = longest_tokens(tokenizer, 20)
    write_json({**figures, "longest_tokens": longest}, Path("reports/tokenizer.json"))
    stage.metrics({name: float(value) for name, value in figures.items()})
    stage.artifact(OUT / "tokenizer.json", "tokenizer")
    stage.artifact(OUT / "manifest.json", "tokenizer")
    print(
        f"tokenizer: {tokenizer.vocab_size:,} tokens from {trained.text_bytes:,} bytes "
        f"({trained.distinct_words:,} distinct words), {figures['val_bytes_per_token']:.3f} bytes per token on val; "
        f"longest: {longest[:8]}",
        flush=True,
    )


if __name__ == "__main__":
    main("tokenizer", Params, run)
