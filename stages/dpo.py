"""Stage `dpo`: the base model and preference pairs in, a preference-tuned model out.

Writes models/dpo/ (Hugging Face layout), reports/dpo.json and reports/dpo/curve.csv.
"""

from dataclasses import dataclass
from pathlib import Path

from llm.compute import Compute, ComputeConfig
from llm.dpo import DPOConfig, dpo
from llm.model import folder
from llm.pair_scoring import SCOPES, Scope, encode_pairs
from llm.preferences import read_pairs
from llm.tokenizer.tokenizer import Tokenizer
from stages.device import hold
from stages.records import Teller, summary, write_curve
from stages.stage import Stage, main

OUT = Path("models/dpo")
BASE = Path("models/base")


@dataclass(frozen=True)
class Params:
    dpo: DPOConfig
    compute: ComputeConfig


def run(params: Params, stage: Stage) -> None:
    config = params.dpo
    compute = Compute(params.compute)
    compute = compute.on(hold(stage.name, compute.device)[0])
    tokenizer = Tokenizer.load(BASE)
    policy = folder.load(BASE)

    def encoded(split: str) -> Scope:
        texts = read_pairs(Path("data/preferences/pairs.parquet"), split)
        scope = SCOPES[config.scope](encode_pairs(tokenizer, texts, policy.config.block_size))
        print(
            f"{split}: {sum(map(len, scope.pairs))} pairs in {len(scope)} texts, {scope.cut} cut to the context, "
            f"{scope.dropped} dropped because one answer is the beginning of the other",
            flush=True,
        )
        return scope

    train, held_out = encoded("train"), encoded("test")
    steps = len(train) // config.batch_size * config.epochs
    records = []
    with stage.stopping() as stopping, Teller(stage, steps) as tell:
        for record in dpo(policy, train, held_out, config, compute, stage.scratch, stopping):
            records.append(record)
            tell(record)
    folder.save(policy.cpu(), OUT, BASE, tokenizer.end_of_text, tokenizer.begin_of_text)
    write_curve(records, Path("reports/dpo/curve.csv"))
    extra = {
        "train_pairs": sum(map(len, train.pairs)),
        "train_texts": len(train),
        "pairs_cut": train.cut + held_out.cut,
        "prompts_cut": train.prompts_cut + held_out.prompts_cut,
        "answers_cut": train.answers_cut + held_out.answers_cut,
        "pairs_dropped": train.dropped + held_out.dropped,
    }
    summary(records, Path("reports/dpo.json"), extra)


if __name__ == "__main__":
    main("dpo", Params, run)
