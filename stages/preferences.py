"""Stage `preferences`: pairs of answers to learn from.

Writes data/preferences/; how many pairs there are, as metrics, to reports/preferences.json; and of which kinds, and
what was left out, to reports/preferences/counts.json. The base model is read for the source `judged` alone.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm.compute import Compute, ComputeConfig
from llm.corpus.documents import documents, manifest, sample
from llm.errors import WordmillError
from llm.judged import judged_pairs
from llm.model import folder
from llm.preferences import Pair, PreferencesConfig, cleaned, pairs, resolved, write_pairs
from llm.tokenizer.tokenizer import Tokenizer
from stages.metrics import write_json
from stages.stage import Stage, main

CORPUS = Path("data/corpus")
BASE = Path("models/base")
OUT = Path("data/preferences/pairs.parquet")


@dataclass(frozen=True)
class Params:
    preferences: PreferencesConfig
    compute: ComputeConfig


def run(params: Params, stage: Stage) -> None:
    kinds: Counter[str] = Counter()
    counts: dict[str, int] = {}

    def counted(source: Iterator[Pair]) -> Iterator[Pair]:
        for pair in source:
            kinds[pair.kind] += 1
            yield pair

    config = resolved(params.preferences, manifest(CORPUS)["source"])
    if config.source == "judged":
        made = iter(own_pairs(config, params.compute))
    else:
        made = pairs(config, documents(CORPUS / "train"), documents(CORPUS / "test"), stage.scratch)
    write_pairs(counted(cleaned(made, counts)), OUT)
    details = Path("reports/preferences/counts.json")
    write_json({**counts, "kinds": kinds}, details)
    stage.artifact(details)
    write_json({"pairs": counts["train"] + counts["test"]}, Path("reports/preferences.json"))
    stage.metrics({name: float(count) for name, count in counts.items()})
    print(", ".join(f"{name} {count}" for name, count in (counts | kinds).items()), flush=True)


def own_pairs(config: PreferencesConfig, compute: ComputeConfig) -> list[Pair]:
    if manifest(CORPUS)["source"] != "stories":
        raise WordmillError(
            "params.yaml: preferences.source: judged needs the embedded stories and their judge; "
            "use auto, corpus or files"
        )
    texts = sample(CORPUS / "train", config.openings)
    return judged_pairs(folder.load(BASE), Tokenizer.load(BASE), texts, config, Compute(compute))


if __name__ == "__main__":
    main("preferences", Params, run)
