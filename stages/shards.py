"""Stage `shards`: the corpus as token ids on disk.

Reads data/corpus/ and data/tokenizer/, writes data/shards/{train,val,test}/: memory-mapped shards, at least one for
each Parquet part, and index.json. They are made in the scratch folder, where a run that was killed finds the parts that
it had finished, and take their place when all are whole and opened as training will open them. What is in each split,
and in each source of it, goes to reports/shards/splits.json, how large the training split is to reports/shards.json.
"""

import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm.corpus.documents import manifest, parts
from llm.corpus_shards import by_source, encode_part, uses_compiled_code
from llm.progress import progress
from llm.shards import ShardsConfig, ShardSet, write_index
from llm.tokenizer.diagnostics import by_length, diagnostics, printed, rarest_tokens
from llm.tokenizer.tokenizer import Tokenizer
from stages.metrics import numbers, write_json
from stages.stage import Stage, main

CORPUS = Path("data/corpus")
OUT = Path("data/shards")
RECORD = re.compile(r"part-[0-9]+\.json")  # of a part that is done (`llm.corpus_shards`)


@dataclass(frozen=True)
class Params:
    """The sections of params.yaml that this stage reads."""

    shards: ShardsConfig


def run(params: Params, stage: Stage) -> None:
    """Encode every split and tell what came out."""
    tokenizer = Tokenizer.load(Path("data/tokenizer"))
    compiled = uses_compiled_code(params.shards, tokenizer)
    print(f"encoding by {'compiled code' if compiled else 'the library of the tokenizer'}", flush=True)
    results: dict[str, dict[str, Any]] = {}
    for split, entry in manifest(CORPUS)["splits"].items():
        folder = stage.scratch / split
        with progress(total=entry["bytes"], unit="B", label=f"shards: {split}") as bar:
            records = [
                encode_part(part, tokenizer, folder, params.shards, bar.update) for part in parts(CORPUS / split)
            ]
        write_index(folder, [shard for record in records for shard in record.shards], tokenizer)
        shards = ShardSet.open(folder, tokenizer.fingerprint)
        counts = shards.token_counts()
        characters = sum(record.characters for record in records)
        results[split] = diagnostics(counts, len(shards.documents), shards.text_bytes, characters, records[0].opening)
        sources = by_source(records)
        if len(sources) > 1:
            results[split]["sources"] = {
                name: {**asdict(count), "bytes_per_token": count.text_bytes / count.tokens}
                for name, count in sources.items()
            }
        print(printed(split, results[split]), flush=True)
        stage.dataset(split, source=(OUT / split).as_posix(), digest=shards.digest, counts={"tokens": shards.tokens})
    for split in results:
        _publish(stage.scratch / split, OUT / split)
        stage.artifact(OUT / split / "index.json", f"shards/{split}")
    counts = ShardSet.open(OUT / "train", tokenizer.fingerprint, verify=False).token_counts()
    words: dict[str, Any] = {"by_length": by_length(tokenizer, counts)}
    words["rarest_tokens"] = rarest_tokens(tokenizer, counts, 20)
    splits = Path("reports/shards/splits.json")
    write_json({**results, "tokens": words}, splits)
    stage.artifact(splits, "shards")
    headlines = {name: results["train"][name] for name in ("tokens", "bytes_per_token")}
    write_json(headlines, Path("reports/shards.json"))
    for split, figures in results.items():
        figures.pop("sources", None)  # by file names, which are no names for metrics
        stage.metrics({f"{split}_{name}": value for name, value in numbers(figures).items()})


def _publish(folder: Path, target: Path) -> None:
    """Give a finished folder its place, whole or not at all; what is in the scratch folder stays there."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(target.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    for path in folder.iterdir():
        if not RECORD.fullmatch(path.name):
            _link(path, half / path.name)
    half.rename(target)


def _link(path: Path, new: Path) -> None:
    """The same file under a second name, so that a run that must publish again encodes nothing."""
    try:
        os.link(path, new)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, new)


if __name__ == "__main__":
    main("shards", Params, run)
