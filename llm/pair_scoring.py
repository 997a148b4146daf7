"""Preference pairs as tokens, and what of them DPO scores.

The rewards of direct preference optimization are log-probabilities of answers. Two scopes, by name:

- `answers`: all tokens of both answers, as in the paper.
- `fork`: only the first token in which the two answers part, all that comes before it being prompt. Where chosen and
  rejected differ by a word, the rest of the sentence is the same on both sides, and pushing it down as part of the
  rejected answer unlearns the language itself (Pal et al. 2024, arXiv:2402.13228, see this failure of DPO on answers
  of small edit distance). Both tokens are read off at one position of one forward pass, and pairs whose chosen texts
  are beginnings of one another share that pass: a story with twelve pairs is read once in place of 24 times.

A batch counts texts: in `answers` a text is a pair, in `fork` it holds all pairs that share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llm.compute import Compute
from llm.dpo_config import ScopeName
from llm.loss import next_token_loss
from llm.model.packing import shared_length
from llm.model.transformer import Transformer
from llm.preferences import PairTexts
from llm.scoring import Segment, pair_logprobs
from llm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pairs:
    """Preference pairs as tokens: `chosen[i]` and `rejected[i]` begin with the same prompt."""

    chosen: list[Segment]
    rejected: list[Segment]
    cut: int  # pairs of which something was cut to fit the context
    prompts_cut: int = 0  # on the left
    answers_cut: int = 0  # on the right, of either side

    def __len__(self) -> int:
        return len(self.chosen)


def encode_pairs(tokenizer: Tokenizer, texts: PairTexts, block_size: int) -> Pairs:
    """Tokens of each prompt and answer: <end of text> prompt answer, and <end of text> again where answers are whole.

    Prompt and answer are encoded as one text, as the model knows it; a token that reaches from one into the other
    counts as answer. An answer that is not whole loses its last token: in the text that goes on, a full stop may be one
    token with the line end behind it, and learning it alone would unlearn paragraphs. What does not fit into
    block_size + 1 tokens is cut: answers on the right to half of that at most, then the prompt on the left, the same
    for both answers. The <end of text> stays before what is left of the prompt, as before every text in training.
    """
    sides: tuple[list[Segment], list[Segment]] = ([], [])
    cut = prompts_cut = answers_cut = 0
    begin, end = tokenizer.begin_of_text, tokenizer.end_of_text
    encode = lru_cache(maxsize=2)(tokenizer.encode)  # pairs that share a text stand one after the other
    for prompt, chosen, rejected, whole in zip(texts.prompt, texts.chosen, texts.rejected, texts.whole, strict=True):
        wholes = [[begin, *encode(prompt + answer)] + [end] * whole for answer in (chosen, rejected)]
        first = _common([begin, *tokenizer.encode(prompt)], *wholes)
        start, tokens = wholes[0][:first], [text[first:] if whole else text[first:-1] for text in wholes]
        room = block_size + 1
        if len(start) + max(map(len, tokens)) > room:
            cut += 1
            longest = max(room // 2, room - len(start))
            answers_cut += sum(len(answer) > longest for answer in tokens)
            tokens = [answer[:longest] for answer in tokens]
            kept = room - max(map(len, tokens))  # 1 or more
            prompts_cut += len(start) > kept
            start = [start[0], *start[len(start) - kept + 1 :]] if len(start) > kept else start
        for side, answer in zip(sides, tokens, strict=True):
            side.append(Segment(np.array([*start, *answer], dtype=np.int64), len(start)))
    return Pairs(*sides, cut, prompts_cut, answers_cut)


def _common(*sequences: Sequence[int]) -> int:
    """How many tokens all of them begin with."""
    count = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


class Scope(Protocol):
    """`len` counts texts; `pairs[i]` are the numbers of text i's pairs."""

    pairs: list[list[int]]
    lengths: np.ndarray  # (2, pairs in the order of `pairs`), scored tokens of chosen and rejected
    cut: int  # pairs of which something was cut to fit the context
    prompts_cut: int  # on the left
    answers_cut: int  # on the right, of either side
    dropped: int  # pairs that the scope cannot score

    def __len__(self) -> int: ...

    def logprobs(
        self, model: Transformer, texts: Sequence[int], compute: Compute, sft: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (2, pairs of `texts`) of chosen and rejected in nats, differentiable; and, if `sft`, the
        chosen answers' mean cross-entropy a token, each token counted once."""
        ...


class WholeAnswers:
    """Scope `answers`."""

    def __init__(self, pairs: Pairs) -> None:
        self.chosen, self.rejected = pairs.chosen, pairs.rejected
        self.cut, self.prompts_cut, self.answers_cut = pairs.cut, pairs.prompts_cut, pairs.answers_cut
        self.dropped = 0
        self.pairs = [[number] for number in range(len(pairs))]
        both = self.chosen, self.rejected
        self.lengths = np.array([[len(segment.tokens) - segment.first for segment in side] for side in both])

    def __len__(self) -> int:
        return len(self.chosen)

    def logprobs(
        self, model: Transformer, texts: Sequence[int], compute: Compute, sft: bool
    ) -> tuple[Tensor, Tensor | None]:
        chosen, rejected = ([side[i] for i in texts] for side in (self.chosen, self.rejected))
        found = pair_logprobs(model, chosen, rejected, compute)
        tokens = sum(len(segment.tokens) - segment.first for segment in chosen)
        return found, -found[0].sum() / tokens if sft else None


@dataclass
class _Text:
    """A chosen text that holds those of all its pairs."""

    tokens: np.ndarray
    first: int  # where the earliest answer begins
    forks: list[tuple[int, int, int]]  # position, chosen token, rejected token


class Forks:
    """Scope `fork`. Pairs in which one answer is the beginning of the other do not part; `dropped` counts them."""

    def __init__(self, pairs: Pairs) -> None:
        self.texts: list[_Text] = []
        self.pairs: list[list[int]] = []
        self.cut, self.prompts_cut, self.answers_cut = pairs.cut, pairs.prompts_cut, pairs.answers_cut
        self.dropped = 0
        order = sorted(range(len(pairs)), key=lambda i: pairs.chosen[i].tokens.tolist())  # beginnings come first
        for number in order:
            chosen, rejected = pairs.chosen[number], pairs.rejected[number]
            place = shared_length(chosen.tokens, rejected.tokens)
            if place == min(len(chosen.tokens), len(rejected.tokens)):
                self.dropped += 1
                continue
            fork = (place, int(chosen.tokens[place]), int(rejected.tokens[place]))
            last = self.texts[-1] if self.texts else None
            if last and np.array_equal(chosen.tokens[: len(last.tokens)], last.tokens):
                last.tokens, last.first = chosen.tokens, min(last.first, chosen.first)
                last.forks.append(fork)
                self.pairs[-1].append(number)
            else:
                self.texts.append(_Text(chosen.tokens, chosen.first, [fork]))
                self.pairs.append([number])
        self.lengths = np.ones((2, sum(map(len, self.pairs))), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.texts)

    def logprobs(
        self, model: Transformer, texts: Sequence[int], compute: Compute, sft: bool
    ) -> tuple[Tensor, Tensor | None]:
        batch = [self.texts[i] for i in texts]
        ids = np.zeros((len(batch), max(len(text.tokens) for text in batch)), dtype=np.int64)
        answers = np.zeros(ids.shape, dtype=bool)
        for row, text in enumerate(batch):  # causal: padding on the right is never looked at
            ids[row, : len(text.tokens)] = text.tokens
            answers[row, text.first : len(text.tokens)] = True
        tokens = torch.from_numpy(ids).to(compute.device)
        forks = [(row, *fork) for row, text in enumerate(batch) for fork in text.forks]
        rows, places, chosen, rejected = torch.tensor(forks, device=compute.device).T
        with compute.autocast():
            states = model.hidden(tokens[:, :-1])
        nll = None
        if sft:
            mask = torch.from_numpy(answers[:, 1:]).to(compute.device)
            with compute.autocast():
                nll = next_token_loss(states[mask][None], model.head.weight, tokens[:, 1:][mask][None])
        each = model.head(states[rows, places - 1].float()).log_softmax(dim=-1)  # (pairs, V)
        return torch.stack([each.gather(1, side[:, None])[:, 0] for side in (chosen, rejected)]), nll


SCOPES: dict[ScopeName, type[WholeAnswers] | type[Forks]] = {"answers": WholeAnswers, "fork": Forks}
