"""Stage `shards`: the corpus as token ids on disk.

Reads data/corpus/ and data/tokenizer/, writes data/shards/{train,val,test}/: memory-mapped shards, at least one for
each Parquet part, and index.json. Then opens them as training will, and writes what is in each split to
reports/shards/splits.json, and how large the training split is, as metrics, to reports/shards.json.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.corpus.documents import manifest, parts, read_utf8
from llm.progress import Progress, progress
from llm.shards import ShardsConfig, ShardSet, write_index, write_shards
from llm.tokenizer.bulk import BulkEncoder, encode_batches
from llm.tokenizer.diagnostics import OPENING, by_length, diagnostics, printed, rarest_tokens
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.word_table import Batch
from stages.metrics import numbers, write_json
from stages.stage import Stage, main

CORPUS = Path("data/corpus")
OUT = Path("data/shards")


@dataclass(frozen=True)
class Params:
    """The sections of params.yaml that this stage reads."""

    shards: ShardsConfig


class Counted:
    """Passes batches on, and keeps what the shards do not hold: how many characters there were and how they began."""

    def __init__(self, bar: Progress[Any]) -> None:
        self.characters = 0
        self.opening = ""
        self._bar = bar

    def __call__(self, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Batch]:
        for text, ends in batches:
            self.opening = self.opening or text[: ends[1]].tobytes().decode()[:OPENING]
            self.characters += int(np.count_nonzero(text & 0xC0 != 0x80))  # bytes that begin one
            yield Batch(text, ends)
            self._bar.update(len(text))


def run(params: Params, stage: Stage) -> None:
    """Encode every split and tell what came out."""
    tokenizer = Tokenizer.load(Path("data/tokenizer"))
    compiled = params.shards.encoder == "auto" and BulkEncoder.can_encode(tokenizer)
    print(f"encoding by {'compiled code' if compiled else 'the library of the tokenizer'}", flush=True)
    results = {}
    for split, entry in manifest(CORPUS)["splits"].items():
        folder = OUT / split
        infos = []
        with progress(total=entry["bytes"], unit="B", label=f"shards: {split}") as bar:
            counted = Counted(bar)
            for part in parts(CORPUS / split):
                documents = encode_batches(counted(read_utf8(part)), tokenizer, compiled)
                infos += write_shards(documents, tokenizer, folder, part.stem, params.shards.tokens_per_shard)
        write_index(folder, infos, tokenizer)
        shards = ShardSet.open(folder, tokenizer.fingerprint)
        results[split] = diagnostics(
            shards.token_counts(), len(shards.documents), shards.text_bytes, counted.characters, counted.opening
        )
        print(printed(split, results[split]), flush=True)
        stage.dataset(split, source=folder.as_posix(), digest=shards.digest, counts={"tokens": shards.tokens})
        stage.artifact(folder / "index.json", f"shards/{split}")
    counts = ShardSet.open(OUT / "train", tokenizer.fingerprint, verify=False).token_counts()
    words: dict[str, Any] = {"by_length": by_length(tokenizer, counts)}
    words["rarest_tokens"] = rarest_tokens(tokenizer, counts, 20)
    splits = Path("reports/shards/splits.json")
    write_json({**results, "tokens": words}, splits)
    stage.artifact(splits, "shards")
    headlines = {name: results["train"][name] for name in ("tokens", "bytes_per_token")}
    write_json(headlines, Path("reports/shards.json"))
    stage.metrics({f"{split}_{name}": value for split in results for name, value in numbers(results[split]).items()})


if __name__ == "__main__":
    main("shards", Params, run)
