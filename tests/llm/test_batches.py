"""Batches are a function of (seed, step): each window once an epoch, whatever the number of processes."""

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.batches import LAYOUTS, Batches, ahead, best_fit, permuted
from llm.errors import WordmillError
from llm.shards import ShardSet, write_index, write_shards
from llm.tokenizer.bulk import encode_batches
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import END_OF_TEXT, PATTERNS
from llm.tokenizer.tokenizer import Encoded, Tokenizer
from llm.tokenizer.words import joined

TOKENIZER = ByteBPE.from_merges([], PATTERNS["cl100k"], (END_OF_TEXT,))
END = TOKENIZER.end_of_text
MORE = settings(deadline=None, max_examples=60)


class Stream(ShardSet):
    """Documents of the given lengths in memory; token number i is i, so a batch tells where it comes from."""

    def __init__(self, lengths: list[int]) -> None:
        self.folder = Path("stream")
        self.tokens = sum(lengths)
        self.starts = np.cumsum([0, *lengths[:-1]])
        self.ids = np.arange(self.tokens, dtype=np.uint32)

    @property
    def documents(self) -> np.ndarray:  # type: ignore[override]
        return self.starts

    def window(self, start: int, length: int) -> np.ndarray:
        assert 0 <= start <= start + length <= self.tokens
        return self.ids[start : start + length]


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
    return encode_batches(joined(texts), tokenizer, compiled=True)


def epochs(batches: Batches, count: int) -> np.ndarray:
    """Targets of the first `count` epochs, (count, windows, T), each window in the order of training."""
    steps = -(-count * batches.windows // batches.batch_size)
    rows = np.concatenate([batches.batch(step)[1] for step in range(steps)])
    return rows[: count * batches.windows].reshape(count, batches.windows, -1)


@given(lengths=LENGTHS, block_size=st.integers(1, 50), batch_size=st.integers(1, 7), seed=st.integers(0, 9))
@MORE
def test_windows_hold_every_token_once(lengths: list[int], block_size: int, batch_size: int, seed: int) -> None:
    stream = Stream(lengths)
    if stream.tokens < block_size:
        return
    batches = Batches(stream, block_size, batch_size, seed, "windows")
    assert batches.windows == stream.tokens // block_size
    seen: Counter[int] = Counter()
    for targets in epochs(batches, 4):
        assert len(np.unique(targets)) == targets.size  # no token twice in an epoch
        assert stream.tokens - targets.size < block_size  # and fewer than a window left out of it,
        seen.update(targets.ravel().tolist())
        times = [seen[token] for token in range(stream.tokens)]
        assert max(times) - min(times) <= 1  # which come first in the next


@given(lengths=LENGTHS, block_size=st.integers(1, 50), batch_size=st.integers(1, 7), seed=st.integers(0, 9))
@MORE
def test_documents_hold_every_token_and_are_whole(
    lengths: list[int], block_size: int, batch_size: int, seed: int
) -> None:
    stream = Stream(lengths)
    if stream.tokens < block_size:
        return
    batches = Batches(stream, block_size, batch_size, seed, "documents")
    for targets in epochs(batches, 2):
        assert set(targets.ravel().tolist()) == set(range(stream.tokens))
        assert targets.size - stream.tokens == pytest.approx(batches.repeated_share * targets.size)
        rows = {tuple(row.tolist()) for row in targets}
        for start, length in zip(stream.starts.tolist(), lengths, strict=True):
            if length <= block_size:
                document = tuple(range(start, start + length))
                assert any(start in row and row[row.index(start) :][:length] == document for row in rows)


@given(lengths=LENGTHS, block_size=st.integers(1, 50), batch_size=st.integers(1, 7), seed=st.integers(0, 9))
@MORE
def test_documents_once_hold_every_token_and_repeat_less_than_a_window(
    lengths: list[int], block_size: int, batch_size: int, seed: int
) -> None:
    stream = Stream(lengths)
    if stream.tokens < block_size:
        return
    batches = Batches(stream, block_size, batch_size, seed, "documents_once")
    assert batches.windows == -(-stream.tokens // block_size)
    for targets in epochs(batches, 2):
        assert set(targets.ravel().tolist()) == set(range(stream.tokens))
        assert targets.size - stream.tokens < block_size
        assert targets.size - stream.tokens == pytest.approx(batches.repeated_share * targets.size)


def test_documents_once_cut_no_more_documents_than_fill_the_free_places() -> None:
    lengths = np.random.default_rng(0).integers(179, 249, 3000).tolist()  # like the embedded stories
    stream = Stream(lengths)
    packed, once = (Batches(stream, 256, 8, 1, packing) for packing in ("documents", "documents_once"))
    assert packed.repeated_share > 0.15
    assert once.repeated_share < 1e-3
    rows = {tuple(row.tolist()) for targets in epochs(once, 1) for row in targets}
    begins = {row[0]: row for row in rows}
    whole = [
        length
        for start, length in zip(stream.starts.tolist(), lengths, strict=True)
        if begins.get(start, ())[:length] == tuple(range(start, start + length))
    ]
    assert len(whole) / len(lengths) > 0.99 - packed.repeated_share
    assert abs(np.mean(whole) - np.mean(lengths)) < 3  # short and long ones alike


@given(lengths=LENGTHS, packing=st.sampled_from(sorted(LAYOUTS)), step=st.integers(0, 1000))
@MORE
def test_inputs_are_the_tokens_before_the_targets(lengths: list[int], packing: str, step: int) -> None:
    stream = Stream(lengths)
    batches = Batches(stream, min(16, stream.tokens), 4, 3, packing)
    inputs, targets = batches.batch(step)
    assert inputs.shape == targets.shape == (4, min(16, stream.tokens))
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(inputs, (targets - 1) % stream.tokens)


@given(lengths=LENGTHS, packing=st.sampled_from(sorted(LAYOUTS)), step=st.integers(0, 50))
@MORE
def test_positions(lengths: list[int], packing: str, step: int) -> None:
    stream = Stream(lengths)
    size = min(16, stream.tokens)
    batches = Batches(stream, size, 3, 3, packing)
    _, targets = batches.batch(step)
    documents, places = batches.positions(step)
    starts = set(stream.starts.tolist())
    for row, numbers, at in zip(targets.tolist(), documents.tolist(), places.tolist(), strict=True):
        number, place = -1, 0
        for column, target in enumerate(row):
            fresh = column == 0 or target in starts or target != (row[column - 1] + 1) % stream.tokens
            number, place = (number + 1, 0) if fresh else (number, place + 1)
            assert (numbers[column], at[column]) == (number, place)


@pytest.mark.parametrize("packing", sorted(LAYOUTS))
def test_same_batch_for_any_number_of_processes(packing: str) -> None:
    stream = Stream([5, 30, 2, 17, 9] * 9)
    whole = Batches(stream, 16, 12, 1, packing)
    for world in (1, 2, 3, 12):
        parts = [Batches(stream, 16, 12, 1, packing, rank, world) for rank in range(world)]
        for step in (0, 5, 77):
            for i in range(2):
                joined = np.concatenate([part.batch(step)[i] for part in parts])
                assert np.array_equal(joined, whole.batch(step)[i])
            joined = np.concatenate([part.positions(step)[1] for part in parts])
            assert np.array_equal(joined, whole.positions(step)[1])


@pytest.mark.parametrize("packing", sorted(LAYOUTS))
def test_a_batch_depends_on_seed_and_step_alone(packing: str) -> None:
    stream = Stream([7, 30, 12] * 40)
    one, two = Batches(stream, 16, 8, 1, packing), Batches(stream, 16, 8, 1, packing)
    forward = [one.batch(step)[1] for step in range(30)]
    backward = [two.batch(step)[1] for step in reversed(range(30))]
    assert all(np.array_equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    other = Batches(stream, 16, 8, 2, packing)
    assert not np.array_equal(other.batch(0)[1], forward[0])


def test_golden_batch() -> None:
    """The order of training must not change unnoticed: a resumed run would go astray."""
    stream = Stream([10] * 10)
    _, targets = Batches(stream, 10, 10, 7, "windows").batch(0)
    assert targets[:, 0].tolist() == [permuted(i, 10, 7, 0) * 10 for i in range(10)]
    assert [permuted(i, 10, 7, 0) for i in range(10)] == [2, 4, 6, 1, 5, 3, 7, 0, 9, 8]


@given(size=st.integers(1, 3000), seed=st.integers(-5, 2**70), epoch=st.integers(0, 5))
@MORE
def test_permutation(size: int, seed: int, epoch: int) -> None:
    assert sorted(permuted(i, size, seed, epoch) for i in range(size)) == list(range(size))


def test_permutations_look_random() -> None:
    size, draws = 64, 4000
    where = np.array([[permuted(i, size, seed, 0) for i in (0, 1, 40)] for seed in range(draws)])
    for column in where.T:  # uniform: chi-square with 63 degrees of freedom is below 120 but once in 20,000
        counts = np.bincount(column, minlength=size)
        assert ((counts - draws / size) ** 2 / (draws / size)).sum() < 120
    apart = np.bincount((where[:, 1] - where[:, 0]) % size, minlength=size)[1:]
    assert ((apart - draws / 63) ** 2 / (draws / 63)).sum() < 120
    epochs_differ = [[permuted(i, size, 0, epoch) for i in range(size)] for epoch in range(20)]
    assert len({tuple(order) for order in epochs_differ}) == 20


@given(lengths=st.lists(st.integers(1, 20), max_size=60), size=st.integers(20, 50))
@MORE
def test_best_fit(lengths: list[int], size: int) -> None:
    bins, free = best_fit(np.array(lengths, np.int64), size)
    used = np.bincount(bins, weights=lengths, minlength=len(free)) if lengths else np.zeros(0)
    assert np.array_equal(size - used, free)
    assert (used <= size).all()
    assert sum(1 for left in free if left > size / 2) <= 1  # two half-empty bins would have been one


def test_packing_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(60, 300, 20_000)
    packing = best_fit(lengths, 512)
    assert packing.free.sum() / (512 * len(packing.free)) < 0.01


def test_end_of_text_comes_before_the_first_token(tmp_path: Path) -> None:
    texts = ["once", "upon a time", "there was"]
    write_index(tmp_path, write_shards(encoded(texts, TOKENIZER), TOKENIZER, tmp_path, "part-00000", 8), TOKENIZER)
    batches = Batches(ShardSet.open(tmp_path), 12, 3, 0, "documents")
    inputs, targets = batches.batch(0)
    documents, places = batches.positions(0)
    whole = {TOKENIZER.decode(row.tolist()).split(END_OF_TEXT)[0] for row in targets}
    assert whole >= {"upon a time", "there was"}
    assert (inputs[places == 0] == END).all()
    assert (targets[:, :-1][np.diff(documents) == 1] == END).all()


def test_longer_than_the_corpus() -> None:
    with pytest.raises(WordmillError, match=r"stream: 9 tokens are less than one context window of 10; lower model"):
        Batches(Stream([4, 5]), 10, 1, 0)


def test_processes_that_do_not_divide_a_batch() -> None:
    with pytest.raises(WordmillError, match="into 3 equal shares"):
        Batches(Stream([100]), 10, 4, 0, rank=0, world=3)


@pytest.mark.parametrize("packing", sorted(LAYOUTS))
def test_reading_takes_little_time(packing: str) -> None:
    stream = Stream([170] * 20_000)
    batches = Batches(stream, 256, 64, 0, packing)
    began = time.process_time()
    for step in range(10):
        batches.batch(step)
    assert (time.process_time() - began) / 10 < 0.02


def test_the_next_batch_is_prepared_while_one_is_in_use() -> None:
    begun = [threading.Event() for _ in range(5)]

    def load(step: int) -> int:
        begun[step].set()
        return step * step

    for step, batch in ahead(load, range(2, 5)):
        assert batch == step * step
        assert step == 4 or begun[step + 1].wait(10)  # though nobody has asked for it
    assert not begun[1].is_set()
    assert list(ahead(load, range(3, 3))) == []


def test_an_error_in_preparing_comes_at_its_step() -> None:
    steps = ahead(lambda step: [10, 20][step], range(3))
    assert [next(steps), next(steps)] == [(0, 10), (1, 20)]
    with pytest.raises(IndexError):
        next(steps)
