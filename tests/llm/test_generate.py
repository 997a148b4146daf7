"""Continuations against themselves in other batches and against recomputing everything."""

import pytest
import torch

from llm.compute import Compute
from llm.errors import WordmillError
from llm.generate import generate
from llm.model.transformer import Transformer
from llm.sampling import Sampling


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_gives_the_same_text_in_any_batch(
    tiny_model: Transformer, compute: Compute, temperature: float
) -> None:
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
    together = generate(tiny_model, prompts, 12, Sampling(temperature), 3, stop=0, compute=compute)
    split = generate(tiny_model, prompts, 12, Sampling(temperature), 3, stop=0, compute=compute, rows_at_once=1)
    assert together == split
    assert all(0 not in row for row in together)


def test_greedy_equals_recomputing_everything(tiny_model: Transformer, compute: Compute) -> None:
    (written,) = generate(tiny_model, [[7, 8]], 10, Sampling(0.0), 0, stop=-1, compute=compute)
    ids = [7, 8]
    for _ in range(10):
        ids.append(int(tiny_model(torch.tensor([ids]))[0, -1].argmax()))
    assert written == ids[2:]


def test_stops_at_the_stop_token_and_at_the_context(tiny_model: Transformer, compute: Compute) -> None:
    (free,) = generate(tiny_model, [[7, 8]], 1000, Sampling(0.0), 0, stop=-1, compute=compute)
    assert len(free) == tiny_model.config.block_size - 2
    stop = free[4]
    (stopped,) = generate(tiny_model, [[7, 8]], 1000, Sampling(0.0), 0, stop=stop, compute=compute)
    assert stopped == free[: free.index(stop)]


def test_prompts_that_do_not_fit_are_refused(tiny_model: Transformer, compute: Compute) -> None:
    with pytest.raises(WordmillError, match="prompt 2 has 32 tokens; the context holds 1 to 31"):
        generate(tiny_model, [[1], [1] * 32], 5, Sampling(), 0, 0, compute)
    with pytest.raises(WordmillError, match="prompt 1 has 0 tokens"):
        generate(tiny_model, [[]], 5, Sampling(), 0, 0, compute)


def test_a_prompt_with_its_own_seed_gives_the_same_text_at_any_place(tiny_model: Transformer, compute: Compute) -> None:
    prompts, seeds = [[1, 2, 3], [4], [5, 6, 7, 8, 9]], [11, 12, 13]
    sampling = Sampling(min_p=0.01, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.5)
    forward = generate(tiny_model, prompts, 12, sampling, seeds, stop=0, compute=compute)
    backward = generate(tiny_model, prompts[::-1], 12, sampling, seeds[::-1], stop=0, compute=compute)
    alone = [generate(tiny_model, [p], 12, sampling, [s], 0, compute)[0] for p, s in zip(prompts, seeds, strict=True)]
    assert forward == backward[::-1] == alone
    shorter = generate(tiny_model, prompts, 5, sampling, seeds, stop=0, compute=compute)
    assert shorter == [row[:5] for row in forward]


def test_penalties_count_prompt_and_text_as_they_say(tiny_model: Transformer, compute: Compute) -> None:
    """Greedy text against recomputing everything, with OpenAI's and CTRL's formulas written out token by token."""
    prompt = [7, 8, 9]
    sampling = Sampling(0.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.7)
    (written,) = generate(tiny_model, [prompt], 20, sampling, 0, stop=-1, compute=compute)
    (free,) = generate(tiny_model, [prompt], 20, Sampling(0.0), 0, stop=-1, compute=compute)
    ids: list[int] = []
    for _ in range(20):
        logits = tiny_model(torch.tensor([prompt + ids]))[0, -1].tolist()
        for token in set(prompt + ids):
            logits[token] *= 1.3 if logits[token] < 0 else 1 / 1.3
        for token in set(ids):
            logits[token] -= 0.4 + 0.7 * ids.count(token)
        ids.append(max(range(len(logits)), key=logits.__getitem__))
    assert written == ids
    assert written != free


def test_past_the_context_the_newer_half_is_read_again(tiny_model: Transformer, compute: Compute) -> None:
    block_size = tiny_model.config.block_size
    prompts = [[7, 8], list(range(1, 30)), [index % 60 for index in range(45)]]
    slid = generate(tiny_model, prompts, 80, Sampling(0.0), 0, -1, compute, past_context="slide")
    for prompt, text in zip(prompts, slid, strict=True):
        window = prompt if len(prompt) <= block_size else prompt[-block_size // 2 :]
        for token in text:
            assert token == int(tiny_model(torch.tensor([window]))[0, -1].argmax())
            window = [*(window if len(window) < block_size else window[-block_size // 2 :]), token]
        assert len(text) == 80
