"""Stage `evaluate`: how good base and DPO model are, each figure with its interval and, where it is known, its limit.

Writes reports/evaluate/figures.json: loss, perplexity and bits per byte on train, val and test, and the gap between the
first two; the corpus's own entropy on the same documents (embedded stories only); how much of val and test stands in
the training text; calibration; preference accuracy and margin on held-out pairs; accuracy on minimal pairs (where files
of them are given); the judge's share of sensible stories and of each fault (embedded stories only); what DPO changed,
measured on the same documents and pairs. The main figures are metrics, in base.json and dpo.json beside it.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.compute import Compute, ComputeConfig
from llm.contamination import contamination
from llm.corpus.documents import documents, manifest, sample
from llm.corpus.stories import bits, judge
from llm.errors import WordmillError
from llm.evaluate import EvaluateConfig, Scores, score_tokens
from llm.generate import Sampling, generate
from llm.intervals import difference_interval, interval, mean_interval, share_interval
from llm.minimal_pairs import MinimalPair, pair_margins, paradigm_accuracies, read_minimal_pairs
from llm.model import folder
from llm.model.transformer import Transformer
from llm.pair_scoring import encode_pairs
from llm.preferences import read_pairs
from llm.scoring import score
from llm.token_figures import calibration, loss_by_position
from llm.tokenizer.tokenizer import Tokenizer
from stages.metrics import numbers, write_json
from stages.stage import Stage, main

CORPUS = Path("data/corpus")
REPORTS = Path("reports/evaluate")
UNFIT = re.compile(r"[^\w\-./ :]")  # MLflow's names of figures take no others, and a paradigm may be called anything
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
    context = models["base"].config.block_size
    if config.stride > context:
        raise WordmillError(f"params.yaml: evaluate.stride: {config.stride} is longer than model.block_size, {context}")
    is_stories = manifest(CORPUS)["source"] == "stories"
    texts = {split: sample(CORPUS / split, config.documents) for split in ("val", "test")}
    texts["train"] = sample(CORPUS / "train", len(texts["val"]))
    if not is_stories:  # a corpus of one long text has a training document many times as long as val's
        longest = max(map(len, texts["val"]))
        texts["train"] = [text[:longest] for text in texts["train"]]
    exact = {split: np.array([bits(text) for text in texts[split]]) for split in texts if is_stories}
    grammar = read_minimal_pairs(config.minimal_pairs, stage.scratch)

    results: dict[str, Any] = {"series": {}}
    scores: dict[str, dict[str, Scores]] = {}
    margins: dict[str, np.ndarray] = {}
    for name, model in models.items():
        tokens = {split: score_tokens(model, tokenizer, texts[split], compute, config.stride) for split in texts}
        scores[name] = {split: found.scores() for split, found in tokens.items()}
        margins[name] = preference_margins(model, tokenizer, config, compute)
        results[name] = {split: found.summary(config.seed) for split, found in scores[name].items()}
        results[name]["gap"] = gap(scores[name], exact, config.seed)
        results[name]["calibration"], bins = calibration(tokens["test"], config.seed)
        positions = loss_by_position(tokens["test"], context, config.seed)
        results["series"][name] = {"calibration": bins, "loss_by_position": positions}
        results[name]["preferences"] = preferences(margins[name], config.seed)
        if grammar:
            results[name] |= minimal_pairs(model, tokenizer, grammar, compute)
        if is_stories:
            results[name]["stories"] = stories(model, tokenizer, texts["test"], config, compute)
    tests = scores["base"]["test"], scores["dpo"]["test"]
    results["change"] = change(*tests, margins["base"], margins["dpo"], config.seed)
    held_out = {split: texts[split] for split in ("val", "test")}
    overlap = contamination(held_out, documents(CORPUS / "train"), config.ngrams)
    results["contamination"] = {split: {f"{n}_words": of_n for n, of_n in overlap[split].items()} for split in overlap}
    if is_stories:
        results["source"] = {split: entropy(scores["base"][split], exact[split], config.seed) for split in texts}
        floor = results["source"]["test"]["bits_per_byte"]
        for name in models:
            results[name]["excess_over_entropy"] = results[name]["test"]["bits_per_byte"] / floor - 1
    write_json(results, REPORTS / "figures.json")
    for name in models:
        write_json(headlines(results[name]), REPORTS / f"{name}.json")
    stage.metrics({UNFIT.sub("_", name): value for name, value in numbers(results).items()})
    stage.artifact(REPORTS / "figures.json")
    for line in table(results):
        print(line, flush=True)


def gap(scores: dict[str, Scores], exact: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    """Bits per byte on val less those on train, which grow as a model learns its training text by heart.

    Where the source's own bits are known they are taken off both, so that what remains is the model's doing.
    """
    sides = []
    for split in ("val", "train"):
        known = per_row(exact[split], scores[split]) if exact else 0.0
        sides.append((scores[split].nats / math.log(2) - known, scores[split].bytes))
    of_val, of_train = (float(amounts.sum() / sizes.sum()) for amounts, sizes in sides)
    low, high = difference_interval(sides[0], sides[1], seed)
    return {"bits_per_byte": of_val - of_train, "bits_per_byte_low": low, "bits_per_byte_high": high}


def preference_margins(
    model: Transformer, tokenizer: Tokenizer, config: EvaluateConfig, compute: Compute
) -> np.ndarray:
    """By how many nats the model finds the chosen answer likelier, for each held-out pair: (2, pairs).

    The first row is of the whole answers, so that the shorter one has it easier; the second of their mean tokens.
    """
    pairs = read_pairs(Path("data/preferences/pairs.parquet"), "test", limit=config.pairs)
    encoded = encode_pairs(tokenizer, pairs, model.config.block_size)
    sides = encoded.chosen, encoded.rejected
    sums = [score(model, side, compute) for side in sides]
    means = [total / [len(s.tokens) - s.first for s in side] for total, side in zip(sums, sides, strict=True)]
    return np.stack([sums[0] - sums[1], means[0] - means[1]])


def preferences(margins: np.ndarray, seed: int) -> dict[str, float]:
    """Share of held-out pairs whose chosen answer, or its mean token, is the likelier one; and by how many nats."""
    figures = {"pairs": float(margins.shape[1])}
    for name, values in zip(("", "_per_token"), margins, strict=True):
        low, high = share_interval(int((values > 0).sum()), len(values))
        figures |= {f"accuracy{name}": float((values > 0).mean())}
        figures |= {f"accuracy{name}_low": low, f"accuracy{name}_high": high}
        low, high = mean_interval(values, seed)
        figures |= {f"margin{name}": float(values.mean()), f"margin{name}_low": low, f"margin{name}_high": high}
    return figures


def minimal_pairs(
    model: Transformer, tokenizer: Tokenizer, pairs: list[MinimalPair], compute: Compute
) -> dict[str, Any]:
    """How often the model finds the good sentence likelier, over all pairs and by paradigm."""
    accuracies = paradigm_accuracies(pairs, pair_margins(model, tokenizer, pairs, compute))
    return {"minimal_pairs": accuracies.pop(""), "paradigms": accuracies}


def change(base: Scores, dpo: Scores, before: np.ndarray, after: np.ndarray, seed: int) -> dict[str, float]:
    """What DPO added to test bits per byte, preference accuracy and margin, by document and pair, with intervals.

    `before` and `after` are `preference_margins`; `perplexity` is by what share it grew. The same documents
    and pairs are measured before and after, so these intervals are narrower than the two figures'.
    """
    ones = np.ones(before.shape[1])
    changed = (after > 0) - (before > 0).astype(float)
    measured = {
        "bits_per_byte": ((dpo.nats - base.nats) / math.log(2), base.bytes),
        "perplexity": (dpo.nats - base.nats, base.tokens),
        "accuracy": (changed[0], ones),
        "accuracy_per_token": (changed[1], ones),
        "margin": (after[0] - before[0], ones),
    }
    figures: dict[str, float] = {}
    for name, (amounts, weights) in measured.items():
        figures[name] = float(amounts.sum() / weights.sum())
        figures[f"{name}_low"], figures[f"{name}_high"] = interval(amounts, weights, seed)
    for name in ("perplexity", "perplexity_low", "perplexity_high"):
        figures[name] = math.expm1(figures[name])  # of the difference of two losses
    return figures


def stories(
    model: Transformer, tokenizer: Tokenizer, texts: list[str], config: EvaluateConfig, compute: Compute
) -> dict[str, Any]:
    """The judge's verdicts on stories that the model finishes, begun by the openings of held-out ones."""
    begun = [text[: text.index(".") + 1] for text in texts[: config.stories]]  # first sentences
    prompts = [[tokenizer.begin_of_text, *tokenizer.encode(text)] for text in begun]
    sampling = Sampling(temperature=config.temperature)
    room = model.config.block_size
    end, size = tokenizer.end_of_text, tokenizer.vocab_size
    written = generate(model, prompts, room, sampling, config.seed, end, compute, vocab_size=size)
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


def entropy(scores: Scores, exact: np.ndarray, seed: int) -> dict[str, float]:
    """Exact bits per byte of the stories scored under their own source: the limit of any model's."""
    low, high = interval(per_row(exact, scores), scores.bytes, seed)
    value = float(exact.sum() / scores.bytes.sum())
    return {"bits_per_byte": value, "bits_per_byte_low": low, "bits_per_byte_high": high}


def per_row(exact: np.ndarray, scores: Scores) -> np.ndarray:
    """Figures of documents by row of `scores`: the same, but where a single document's windows are the rows."""
    return exact if len(exact) > 1 else exact[0] * scores.bytes / scores.bytes.sum()


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
            f"perplexity {math.exp(test['loss']):.2f}, prefers the chosen answer in {pairs['accuracy']:.1%} "
            f"(by the mean token {pairs['accuracy_per_token']:.1%})"
        )
        if "stories" in results[name]:
            told = results[name]["stories"]
            line += (
                f", sensible stories {told['sensible']:.1%} [{told['sensible_low']:.1%}, {told['sensible_high']:.1%}]"
            )
        lines.append(line)
    titles = {"perplexity": "perplexity", "accuracy": "prefers the chosen", "accuracy_per_token": "by the mean token"}
    change = results["change"]
    figures = (
        f"{title} {change[key]:+.1%} [{change[f'{key}_low']:+.1%}, {change[f'{key}_high']:+.1%}]"
        for key, title in titles.items()
    )
    lines.append(f"change: {', '.join(figures)}")
    if "source" in results:
        lines.append(f"source: test {results['source']['test']['bits_per_byte']:.4f} bits per byte, the best possible")
    return lines


if __name__ == "__main__":
    main("evaluate", Params, run)
