"""Stage `preferences`: pairs of answers to learn from.

Writes data/preferences/; how many pairs there are and how many records were left out, as metrics, to
reports/preferences.json; and the whole account, with each cause and its first record, to
reports/preferences/counts.json. The base model is read for the source `judged` alone.
"""

from dataclasses import dataclass
from pathlib import Path

from llm.compute import Compute, ComputeConfig
from llm.corpus.documents import documents, manifest, sample
from llm.errors import WordmillError
from llm.judged import judged_pairs
from llm.model import folder
from llm.preference_account import Account
from llm.preferences import Pair, PreferencesConfig, counted, pairs, resolved, select, write_pairs
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
    account = Account()
    config = resolved(params.preferences, manifest(CORPUS)["source"])
    if config.source == "judged":
        made = counted(own_pairs(config, params.compute), account)
    else:
        texts = documents(CORPUS / "train"), documents(CORPUS / "test")
        made = pairs(config, *texts, account, stage.scratch)
    write_pairs(select(made, config, account), OUT)
    details = Path("reports/preferences/counts.json")
    write_json(account.figures(), details)
    stage.artifact(details)
    counts = account.counts()
    main_figures = {"pairs": account.kept.total(), "left_out": account.left_out.total()}
    write_json(main_figures, Path("reports/preferences.json"))
    stage.metrics({name: float(count) for name, count in (counts | main_figures).items()})
    print("\n".join(account.lines()), flush=True)


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
