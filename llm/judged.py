"""Preference pairs of the model's own writing: a story that makes sense against one that does not.

For each opening the model writes several stories, and the judge of the embedded corpus reads them. Both answers of a
pair are the model's own, from the same opening, so what they differ in is what makes sense and what does not, and not
whose they are; and an opening that always or never succeeds teaches nothing and gives no pair. (Pairs that show only
the model's mistakes, put right, do not work: docs/LOG.md, 2026-11-21.)

A model that hardly ever makes sense gives too few pairs. Then the openings at which it never did so are paired too,
with the source's own story as the chosen one; the kinds tell the two apart.
"""

from collections.abc import Sequence

from llm.compute import Compute
from llm.corpus.stories import judge
from llm.generate import Sampling, generate
from llm.model.transformer import Transformer
from llm.preference_split import hashed_split
from llm.preferences import Pair, PreferencesConfig
from llm.progress import progress
from llm.tokenizer.tokenizer import Tokenizer

FEW = 100  # pairs, below which the source's stories help out
AT_ONCE = 64  # openings


def judged_pairs(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], config: PreferencesConfig, compute: Compute
) -> list[Pair]:
    """The pairs in the order of `texts`: whole stories, whose first sentences are the prompts."""
    openings = [text[: text.index(".") + 1] for text in texts]
    own: list[list[Pair]] = []
    with progress(total=len(openings), unit="openings", label="preferences") as bar:
        for start in range(0, len(openings), AT_ONCE):
            part = openings[start : start + AT_ONCE]
            written = _written(model, tokenizer, part, start, config, compute)
            own += [_contrasts(opening, tries, config) for opening, tries in zip(part, written, strict=True)]
            bar.update(len(part))
    found = [pair for pairs in own for pair in pairs if pair.chosen]
    if len(found) < FEW:
        found = [
            pair if pair.chosen else Pair(pair.prompt, text[len(pair.prompt) :], pair.rejected, "source", pair.split)
            for text, pairs in zip(texts, own, strict=True)
            for pair in pairs
        ]
    return found


def _written(
    model: Transformer,
    tokenizer: Tokenizer,
    openings: Sequence[str],
    start: int,
    config: PreferencesConfig,
    compute: Compute,
) -> list[list[str]]:
    """For each opening, its continuations; another seed for each batch."""
    end, size = tokenizer.end_of_text, tokenizer.vocab_size
    prompts = [
        [tokenizer.begin_of_text, *tokenizer.encode(opening)] for opening in openings for _ in range(config.tries)
    ]
    sampling = Sampling(temperature=config.temperature)
    room = model.config.block_size
    ids = generate(model, prompts, room, sampling, config.seed * 1_000_003 + start, end, compute, vocab_size=size)
    texts = [tokenizer.decode(row) for row in ids]
    return [texts[i : i + config.tries] for i in range(0, len(texts), config.tries)]


def _contrasts(opening: str, tries: Sequence[str], config: PreferencesConfig) -> list[Pair]:
    """Sensible ones against broken ones, none used twice; one pair without a chosen answer where none is sensible."""
    split = hashed_split(opening, config.held_out_share)
    verdicts = [judge(opening + text) for text in tries]
    good = [text for text, verdict in zip(tries, verdicts, strict=True) if verdict.sensible]
    bad = [(text, v.kind) for text, v in zip(tries, verdicts, strict=True) if v.kind not in ("", "unfinished")]
    if not good:
        return [Pair(opening, "", text, kind, split) for text, kind in bad[:1]]
    return [Pair(opening, true, false, kind, split) for true, (false, kind) in zip(good, bad, strict=False)]
