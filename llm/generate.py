"""Continuing prompts, token by token: prompts of any lengths in one batch, each until it ends.

What a prompt becomes is a function of the model, the prompt, the settings and its seed. `llm.sampling` says how a token
is drawn, `llm.decoder` how the model reads. A text ends at the token `stop`, at so many new tokens, or at the context's
end. There `past_context` has a word:

- `stop`: prompt and text together fill the context at most.
- `slide`: when the context of `block_size` tokens is full, its older half is forgotten, and the newer half is read
  again from position 0 on; so the text goes on, and each token sees at least half a context. Of a prompt longer than
  the context the newest half context is read. Penalties know the whole text nevertheless.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from llm.compute import Compute
from llm.decoder import Decoder, decoder_for
from llm.devices import memory_for
from llm.errors import WordmillError
from llm.model.transformer import Transformer
from llm.sampling import History, Sampling, Uniforms, draw, of_tokens

PastContext = Literal["stop", "slide"]


@memory_for("generation", "free the device's memory, or set compute.device: cpu")
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int | Sequence[int],
    stop: int,
    compute: Compute,
    rows_at_once: int = 256,
    past_context: PastContext = "stop",
    vocab_size: int | None = None,
) -> list[list[int]]:
    """Continue each prompt (token ids, at least one); the token `stop` is left out.

    `vocab_size` is the tokenizer's. A model whose vocabulary is padded has more ids, and those are never drawn.

    Prompt i draws from (seed, i), or with a sequence from seeds[i] alone. Raises WordmillError for an empty prompt and,
    unless the context slides, for one that fills it.
    """
    seeds = [Uniforms(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else list(map(Uniforms, seed))
    check_fit(prompts, model.config.block_size, past_context)
    training = model.training
    decoder = decoder_for(model, compute)
    written: list[list[int]] = []
    for start in range(0, len(prompts), rows_at_once):
        part = slice(start, start + rows_at_once)
        writing = Writing(decoder, prompts[part], seeds[part], max_new_tokens, sampling, stop, past_context, vocab_size)
        while writing.going:
            writing.step()
        written += writing.written
    model.train(training)
    return written


def check_fit(prompts: Sequence[Sequence[int]], block_size: int, past_context: PastContext) -> None:
    """Raises WordmillError for the first prompt that cannot be continued."""
    for number, prompt in enumerate(prompts):
        if not prompt or (len(prompt) >= block_size and past_context == "stop"):
            raise WordmillError(
                f"prompt {number + 1} has {len(prompt)} tokens; the context holds 1 to {block_size - 1}"
            )


def stop_place(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first in `text`; None if there is none."""
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[1] if found else None


class Writing:
    """A batch on its way. Prompts must fit (`check_fit`)."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Uniforms],
        max_new_tokens: int,
        sampling: Sampling,
        stop: int,
        past_context: PastContext,
        vocab_size: int | None = None,
    ) -> None:
        self.written: list[list[int]] = [[] for _ in prompts]
        self.going = list(range(len(prompts)))  # rows that get a token in the next step
        self.block_size = decoder.config.block_size
        self._prompts = prompts
        self._seeds = seeds
        self._limit = max_new_tokens
        self._sampling = sampling
        self._stop = stop
        self._vocab_size = vocab_size
        self._slides = past_context == "slide"
        begun = [list(p if len(p) <= self.block_size else p[-(self.block_size // 2) :]) for p in prompts]
        self._held = [len(ids) for ids in begun]  # tokens that the decoder holds of each row
        self._reading = decoder.read(begun, min(self.block_size, max(self._held) + max_new_tokens))
        self._rows = self.going  # those of `_reading`
        self._tokens: torch.Tensor | None = None  # drawn for them and not read yet
        self._history = History(prompts, decoder.vocab_size, decoder.compute.device) if sampling.penalises else None

    def step(self) -> list[tuple[int, int, torch.Tensor]]:
        """Draw a token for each row that is going: its number, the token, and the model's own logits (V,)."""
        if self._tokens is not None:
            self._read(self._tokens)
        own = self._reading.logits
        logits = own if self._history is None else self._history.penalised(own, self._sampling)
        logits = of_tokens(logits, self._vocab_size)
        uniforms = [self._seeds[row].next() for row in self._rows]
        self._tokens = draw(logits, torch.tensor(uniforms, dtype=torch.float64), self._sampling)
        drawn = list(zip(self._rows, self._tokens.tolist(), own, strict=True))
        self.going = []
        for row, token, _ in drawn:
            if token == self._stop:
                continue
            self.written[row].append(token)
            within = self._slides or len(self._prompts[row]) + len(self.written[row]) < self.block_size
            if within and len(self.written[row]) < self._limit:
                self.going.append(row)
        return drawn

    def drop(self, row: int) -> None:
        """End this row here."""
        self.going = [other for other in self.going if other != row]

    def _read(self, tokens: torch.Tensor) -> None:
        """The last tokens, of the rows that go on."""
        if len(self.going) < len(self._rows):
            places = {row: place for place, row in enumerate(self._rows)}
            keep = torch.tensor([places[row] for row in self.going], device=tokens.device)
            tokens = tokens[keep]
            self._reading.keep(keep)
            if self._history is not None:
                self._history.keep(keep)
            self._rows = self.going
        if self._history is not None:
            self._history.add(tokens)
        for place, row in enumerate(self._rows):
            if self._held[row] == self.block_size:
                half = self.block_size // 2
                self._reading.again(place, [*self._prompts[row], *self.written[row][:-1]][-half:])
                self._held[row] = half
            self._held[row] += 1
        self._reading.step(tokens)
