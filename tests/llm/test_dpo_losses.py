"""DPO's losses against their papers' formulas in closed form and, where TRL is installed, against its trainer."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm.compute import Compute
from llm.dpo import DPOConfig
from llm.dpo_losses import LOSSES, LossName, preference_loss
from llm.errors import ConfigError
from llm.model.layouts import LAYOUTS
from llm.model.transformer import Transformer
from llm.pair_scoring import Pairs, WholeAnswers
from llm.scoring import Segment
from stages import params
from stages.dpo import Params

ROOT = Path(__file__).parents[2]
RATIOS = np.array([[0.5, -2.0, 3.0], [1.0, -1.5, -4.0]])
LENGTHS = np.array([[4, 2, 5], [3, 6, 1]])
CASES: list[tuple[LossName, float, str, float]] = [  # ours, smoothing, TRL's name, TRL's smoothing
    ("sigmoid", 0.0, "sigmoid", 0.0),
    ("sigmoid", 0.1, "aot_unpaired", 0.1),  # cDPO, as TRL has it: the same for one pair at a time
    ("hinge", 0.0, "hinge", 0.0),
    ("ipo", 0.0, "ipo", 0.0),
    ("sigmoid_norm", 0.0, "sigmoid_norm", 0.0),
]


def closed_form(name: str, smoothing: float, beta: float) -> np.ndarray:
    """The papers' formulas in float64, pair by pair."""
    margin = beta * (RATIOS[0] - RATIOS[1])
    each = RATIOS / LENGTHS
    mean = each[0] - each[1]
    match name:
        case "sigmoid":
            return (1 - smoothing) * np.log1p(np.exp(-margin)) + smoothing * np.log1p(np.exp(margin))
        case "hinge":
            return np.maximum(0, 1 - margin)
        case "ipo":
            return (mean - 0.5 / beta) ** 2
        case _:
            return np.log1p(np.exp(-beta * mean))


@pytest.mark.parametrize(("name", "smoothing"), [case[:2] for case in CASES])
def test_losses_are_the_papers(name: LossName, smoothing: float) -> None:
    ratios = torch.tensor(RATIOS, requires_grad=True)
    loss = preference_loss(name, ratios, torch.tensor(LENGTHS), 0.3, smoothing)
    assert loss.item() == pytest.approx(closed_form(name, smoothing, 0.3).mean(), abs=1e-12)
    assert torch.autograd.gradcheck(
        lambda r: preference_loss(name, r, torch.tensor(LENGTHS), 0.3, smoothing), (ratios,), atol=1e-6
    )


def test_every_loss_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(LOSSES)


def test_the_gradient_of_sigmoid_is_equation_7() -> None:
    """The weight of a pair is β σ(reward_rejected - reward_chosen)."""
    ratios = torch.tensor(RATIOS, requires_grad=True)
    (gradient,) = torch.autograd.grad(preference_loss("sigmoid", ratios, torch.tensor(LENGTHS), 0.3, 0.0), ratios)
    weight = 0.3 * torch.sigmoid(0.3 * (ratios[1] - ratios[0])).detach() / 3
    torch.testing.assert_close(gradient, torch.stack([-weight, weight]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"label_smoothing": 0.5}, "is not in"), ({"label_smoothing": 0.1, "loss": "ipo"}, "is read by the loss sigmoid")],
)
def test_smoothing_has_its_limits(change: dict[str, Any], problem: str, dpo_config: DPOConfig) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        replace(dpo_config, **change)
    assert caught.value.field == "label_smoothing"


@pytest.fixture(scope="module")
def dpo_config() -> DPOConfig:
    return params.load(Params, ROOT / "params.yaml").dpo


@pytest.mark.parametrize(("name", "smoothing", "theirs", "their_smoothing"), CASES)
def test_loss_and_gradients_are_trls(
    name: LossName,
    smoothing: float,
    theirs: str,
    their_smoothing: float,
    tiny_model: Transformer,
    compute: Compute,
    tmp_path: Path,
) -> None:
    """The same weights and pairs, a reference that differs from the policy, all parameters' gradients."""
    pytest.importorskip("trl", reason="TRL comes with the extra `bench`: pip install -e .[bench]")
    reference = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for weight in reference.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    scope = WholeAnswers(uneven_pairs())
    rows = range(len(scope))
    with torch.no_grad():
        before, _ = scope.logprobs(reference, rows, compute, sft=False)
    ratios = scope.logprobs(tiny_model, rows, compute, sft=False)[0] - before
    loss = preference_loss(name, ratios, torch.from_numpy(scope.lengths), 0.3, smoothing)
    loss.backward()

    trainer = trl_trainer(in_llama(tiny_model), in_llama(reference), theirs, their_smoothing, tmp_path)
    records = as_records(scope)
    batches = [[record] for record in records] if theirs == "aot_unpaired" else [records]
    their_loss = torch.stack(
        [trainer.compute_loss(trainer.model, trainer.data_collator(batch)) for batch in batches]
    ).mean()
    their_loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    gradients = {key: weight.grad for key, weight in trainer.model.named_parameters()}
    for weight in tiny_model.parameters():
        weight.data = weight.grad
    ours = LAYOUTS["llama"].views(tiny_model)  # of gradients, under their names
    assert set(ours) == set(gradients)
    assert max(gradient.abs().max().item() for gradient in ours.values()) > 1e-2
    for key, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[key], atol=1e-5, rtol=1e-5, msg=key)


def uneven_pairs() -> Pairs:
    random = np.random.default_rng(0)
    sides: tuple[list[Segment], list[Segment]] = ([], [])
    for prompt, lengths in ((3, (5, 2)), (6, (1, 7)), (2, (4, 4))):
        start = random.integers(1, 64, prompt)
        for side, length in zip(sides, lengths, strict=True):
            side.append(Segment(np.concatenate([start, random.integers(1, 64, length)]), prompt))
    return Pairs(*sides, cut=0)


def as_records(scope: WholeAnswers) -> list[dict[str, list[int]]]:
    return [
        {
            "prompt_ids": chosen.tokens[: chosen.first].tolist(),
            "chosen_ids": chosen.tokens[chosen.first :].tolist(),
            "rejected_ids": rejected.tokens[rejected.first :].tolist(),
        }
        for chosen, rejected in zip(scope.chosen, scope.rejected, strict=True)
    ]


def in_llama(model: Transformer) -> LlamaForCausalLM:
    settings = LAYOUTS["llama"].settings(model.config)
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=model.vocab_size, **settings))
    missing, unexpected = theirs.load_state_dict(LAYOUTS["llama"].views(model), strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    return theirs


def trl_trainer(model: Any, reference: Any, loss: str, smoothing: float, at: Path) -> Any:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
            return dataset  # is tokens already

    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(64)}, unk_token="<0>"))
    args = DPOConfig(
        output_dir=str(at),
        loss_type=[loss],
        label_smoothing=smoothing,
        beta=0.3,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    pairs = Dataset.from_list(as_records(WholeAnswers(uneven_pairs())))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", eos_token="<0>")
    return Tokenised(model, reference, args, train_dataset=pairs, processing_class=tokenizer)
