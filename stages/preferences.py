"""Stage `preferences`: pairs of answers to learn from.

Writes data/preferences/; how many pairs there are, as metrics, to reports/preferences.json; and of which kinds, and
what was left out, to reports/preferences/counts.json.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm.corpus.documents import documents
from llm.preferences import Pair, PreferencesConfig, cleaned, pairs, write_pairs
from stages.metrics import write_json
from stages.stage import Stage, main

CORPUS = Path("data/corpus")
OUT = Path("data/preferences/pairs.parquet")


@dataclass(frozen=True)
class Params:
    preferences: PreferencesConfig


def run(params: Params, stage: Stage) -> None:
    kinds: Counter[str] = Counter()
    counts: dict[str, int] = {}

    def counted(source: Iterator[Pair]) -> Iterator[Pair]:
        for pair in source:
            kinds[pair.kind] += 1
            yield pair

    made = pairs(params.preferences, documents(CORPUS / "train"), documents(CORPUS / "test"))
    write_pairs(counted(cleaned(made, counts)), OUT)
    details = Path("reports/preferences/counts.json")
    write_json({**counts, "kinds": kinds}, details)
    stage.artifact(details)
    write_json({"pairs": counts["train"] + counts["test"]}, Path("reports/preferences.json"))
    stage.metrics({name: float(count) for name, count in counts.items()})
    print(", ".join(f"{name} {count}" for name, count in (counts | kinds).items()), flush=True)


if __name__ == "__main__":
    main("preferences", Params, run)
