"""Stage `download`: the corpus as Parquet, split into train, val and test.

Reads no file of the pipeline (the source may read the network or the user's own files); writes data/corpus/, whose
manifest says all about it, and the number of documents, as a metric, in reports/corpus.json.
"""

from dataclasses import dataclass
from pathlib import Path

from llm.corpus.build import build
from llm.corpus.config import CorpusConfig
from stages.metrics import write_json
from stages.stage import Stage, main

CORPUS = Path("data/corpus")


@dataclass(frozen=True)
class Params:
    """The sections of params.yaml that this stage reads."""

    corpus: CorpusConfig


def run(params: Params, stage: Stage) -> None:
    """Build the corpus and tell what it holds."""
    manifest = build(params.corpus, CORPUS, stage.scratch)
    splits = manifest["splits"]
    counts = {split: content["documents"] for split, content in splits.items()}
    names = ("documents", "bytes", "characters", "duplicates", "empty", "invalid_utf8")
    metrics = {name: float(manifest[name]) for name in names}
    left_out = manifest.get("left_out", {"rows": 0})["rows"]  # with corpus.bad_rows: skip
    metrics |= {"left_out": float(left_out)} if "left_out" in manifest else {}
    metrics |= {f"{split}_documents": float(count) for split, count in counts.items()}
    stage.metrics(metrics)
    write_json({"documents": manifest["documents"]}, Path("reports/corpus.json"))
    stage.tags({"corpus.source": params.corpus.source, "corpus.digest": manifest["digest"]})
    stage.artifact(CORPUS / "manifest.json")
    stage.dataset("corpus", source=params.corpus.source, digest=manifest["digest"], counts=counts)
    print(
        f"corpus: {manifest['documents']:,} documents, {manifest['bytes'] / 1e6:,.1f} MB "
        f"(train {counts['train']:,}, val {counts['val']:,}, test {counts['test']:,}), "
        f"dropped {manifest['duplicates']:,} repeated and {manifest['empty']:,} empty, "
        f"{manifest['invalid_utf8']:,} malformed sequences replaced"
        + (f", {left_out:,} bad rows left out" if left_out else "")
    )


if __name__ == "__main__":
    main("download", Params, run)
