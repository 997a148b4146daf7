"""Stage `evaluate`: how good base and DPO model are, each figure with its interval and, where it is known, its limit.

Writes reports/evaluate/figures.json: loss, perplexity and bits per byte on val and test; the corpus's own entropy on
the same documents (embedded stories only); preference accuracy on held-out pairs; the judge's share of sensible stories
and of each fault (embedded stories only). The main figures are metrics, in base.json and dpo.json beside it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.compute import Compute, ComputeConfig
from llm.corpus.documents import manifest, sample
from llm.corpus.stories import bits, judge
from llm.evaluate import EvaluateConfig, interval, score_documents, share_interval
from llm.generate import Sampling, generate
from llm.model import folder
from llm.model.transformer import Transformer
from llm.pair_scoring import encode_pairs
from llm.preferences import read_pairs
from llm.scoring import score
from llm.tokenizer.tokenizer import Tokenizer
from stages.metrics import numbers, write_json
from stages.stage import Stage, main

CORPUS = Path("data/corpus")
REPORTS = Path("reports/evaluate")
MODELS = {"base": Path("models/base"), "dpo": Path("models/dpo")}


@dataclass(frozen=True)
class Params:
    evaluate: EvaluateConfig
    compute: ComputeConfig


def run(params: Params, stage: Stage) -> None:
    config = params.evaluate
    compute = Compute(params.compute)
    tokenizer = Tokenizer.load(MODELS["base"])
    models = {name: folder.load(path).to(compute.device).eval() for name, path in MODELS.items()}
    is_stories = manifest(CORPUS)["source"] == "stories"
    texts = {split: sample(CORPUS / split, config.documents) for split in ("val", "test")}

    results: dict[str, Any] = {}
    for name, model in models.items():
        results[name] = {
            split: score_documents(model, tokenizer, texts[split], compute).summary(config.seed) for split in texts
        }
        results[name]["preferences"] = preferences(model, tokenizer, config, compute)
        if is_stories:
            results[name]["stories"] = stories(model, tokenizer, texts["test"], config, compute)
    if is_stories:
        results["source"] = {split: entropy(texts[split], config.seed) for split in texts}
        floor = results["source"]["test"]["bits_per_byte"]
        for name in models:
            results[name]["excess_over_entropy"] = results[name]["test"]["bits_per_byte"] / floor - 1
    write_json(results, REPORTS / "figures.json")
    for name in models:
        write_json(headlines(results[name]), REPORTS / f"{name}.json")
    stage.metrics(numbers(results))
    stage.artifact(REPORTS / "figures.json")
    for line in table(results):
        print(line, flush=True)


def preferences(model: Transformer, tokenizer: Tokenizer, config: EvaluateConfig, compute: Compute) -> dict[str, float]:
    """Share of held-out pairs whose chosen answer the model finds likelier, and by how many nats on average."""
    pairs = read_pairs(Path("data/preferences/pairs.parquet"), "test", limit=config.pairs)
    encoded = encode_pairs(tokenizer, pairs, model.config.block_size)
    margins = score(model, encoded.chosen, compute) - score(model, encoded.rejected, compute)
    low, high = share_interval(int((margins > 0).sum()), len(margins))
    return {
        "accuracy": float((margins > 0).mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "margin": float(margins.mean()),
        "pairs": float(len(margins)),
    }


def stories(
    model: Transformer, tokenizer: Tokenizer, texts: list[str], config: EvaluateConfig, compute: Compute
) -> dict[str, Any]:
    """The judge's verdicts on stories that the model finishes, begun by the openings of held-out ones."""
    begun = [text[: text.index(".") + 1] for text in texts[: config.stories]]  # first sentences
    prompts = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in begun]
    sampling = Sampling(temperature=config.temperature)
    room = model.config.block_size
    written = generate(model, prompts, room, sampling, config.seed, tokenizer.end_of_text, compute)
    verdicts = [judge(start + tokenizer.decode(ids)) for start, ids in zip(begun, written, strict=True)]
    sensible = sum(verdict.sensible for verdict in verdicts)
    low, high = share_interval(sensible, len(verdicts))
    kinds = sorted({verdict.kind for verdict in verdicts if not verdict.sensible})
    return {
        "sensible": sensible / len(verdicts),
        "sensible_low": low,
        "sensible_high": high,
        "written": float(len(verdicts)),
        "faults": {kind: sum(v.kind == kind and not v.sensible for v in verdicts) / len(verdicts) for kind in kinds},
    }


def entropy(texts: list[str], seed: int) -> dict[str, float]:
    """Exact bits per byte of stories under their own source: the limit of any model's."""
    exact = np.array([bits(text) for text in texts])
    sizes = np.array([len(text.encode()) for text in texts], dtype=np.float64)
    low, high = interval(exact, sizes, seed)
    return {"bits_per_byte": float(exact.sum() / sizes.sum()), "bits_per_byte_low": low, "bits_per_byte_high": high}


def headlines(of_model: dict[str, Any]) -> dict[str, float]:
    """A model's main figures on the test split; both models' have the same names, and so stand in the same columns."""
    test = of_model["test"]
    main = {"bits_per_byte": test["bits_per_byte"], "preferred": of_model["preferences"]["accuracy"]}
    if "stories" in of_model:
        main |= {"excess": of_model["excess_over_entropy"], "sensible": of_model["stories"]["sensible"]}
    return main


def table(results: dict[str, Any]) -> list[str]:
    """The main figures, for the log."""
    lines = []
    for name in MODELS:
        test, pairs = results[name]["test"], results[name]["preferences"]
        line = (
            f"{name}: test {test['bits_per_byte']:.4f} bits per byte "
            f"[{test['bits_per_byte_low']:.4f}, {test['bits_per_byte_high']:.4f}], "
            f"perplexity {math.exp(test['loss']):.2f}, prefers the chosen answer in {pairs['accuracy']:.1%}"
        )
        if "stories" in results[name]:
            told = results[name]["stories"]
            line += (
                f", sensible stories {told['sensible']:.1%} [{told['sensible_low']:.1%}, {told['sensible_high']:.1%}]"
            )
        lines.append(line)
    if "source" in results:
        lines.append(f"source: test {results['source']['test']['bits_per_byte']:.4f} bits per byte, the best possible")
    return lines


if __name__ == "__main__":
    main("evaluate", Params, run)
