"""The engine's thread: whose turn it is, and what a bug costs."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.compiled_decoder import CompiledDecoder
from llm.compute import Compute, ComputeConfig
from llm.model import folder
from llm.sampling import Sampling
from llm.streaming import Piece, Wanted, write
from llm.tokenizer.tokenizer import Tokenizer
from pipeline.serve.engine import Choice, Engine, Full, Job, Served


@pytest.fixture(scope="module")
def served(models: dict[str, Path]) -> Served:
    compute = Compute(ComputeConfig("cpu", "fp32", False, False, 1))
    return Served(CompiledDecoder(folder.load(models["base"]), compute), Tokenizer.load(models["base"]), 0)


def choice(seed: int, tokens: int = 40, prompt: bytes = b"x") -> Choice:
    return Choice([256, *prompt], seed, Wanted(tokens, Sampling(0.9)))


async def texts(job: Job) -> list[str]:
    whole = [Piece() for _ in job.choices]
    async for pieces in job.pieces():
        for number, piece in pieces.items():
            whole[number] += piece
    assert all(piece.finish for piece in whole)
    return [piece.text for piece in whole]


def with_engine(waiting: int, at_once: int, use: Callable[[Engine], Any]) -> Any:
    async def run() -> Any:
        engine = Engine(waiting, at_once, 1)
        try:
            return await asyncio.wait_for(use(engine), 120)
        finally:
            engine.stop()

    return asyncio.run(run())


def test_a_text_is_the_one_written_alone_whatever_the_company(served: Served) -> None:
    jobs = [
        [choice(10 * number + again, prompt=bytes([65 + number])) for again in range(number % 3 + 1)]
        for number in range(6)
    ]

    async def together(engine: Engine) -> list[list[str]]:
        return await asyncio.gather(*(texts(engine.submit(served, job)) for job in jobs))

    for found, job in zip(with_engine(64, 5, together), jobs, strict=True):
        for text, one in zip(found, job, strict=True):
            alone = write(served.decoder, served.tokenizer, [one.prompt], [one.seed], one.wanted)
            assert text == "".join(piece.text for _, piece in alone)


def test_a_job_of_many_choices_lets_others_in(served: Served) -> None:
    """Sixteen long choices are begun first; a short one is done long before them."""

    async def both(engine: Engine) -> list[str]:
        ended: list[str] = []

        async def one(name: str, choices: list[Choice]) -> None:
            await texts(engine.submit(served, choices))
            ended.append(name)

        long = asyncio.create_task(one("long", [choice(number, 100) for number in range(16)]))
        await asyncio.sleep(0)
        await one("short", [choice(1, 3)])
        await long
        return ended

    assert with_engine(64, 4, both) == ["short", "long"]


def test_a_full_queue_and_jobs_that_are_dropped(served: Served) -> None:
    async def fill(engine: Engine) -> None:
        jobs: list[Job] = []
        while not engine.full:
            jobs.append(engine.submit(served, [choice(number, 400) for number in range(16)]))
        assert len(jobs) >= 3
        with pytest.raises(Full):
            engine.submit(served, [choice(1)])
        for job in jobs:
            job.drop()
        assert len(await texts(engine.submit(served, [choice(1, 3)]))) == 1

    with_engine(3, 2, fill)


def test_a_bug_ends_the_jobs_of_its_model_and_no_others(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        config, vocab_size, compute = served.decoder.config, served.decoder.vocab_size, served.decoder.compute

        def read(self, prompts: Any, room: int) -> Any:
            raise RuntimeError("broken on purpose")

    broken = Served(Broken(), served.tokenizer, 0)

    async def both(engine: Engine) -> list[str]:
        good, bad = engine.submit(served, [choice(1)]), engine.submit(broken, [choice(1), choice(2)])
        found = asyncio.create_task(texts(good))
        with pytest.raises(RuntimeError, match="broken on purpose"):
            await texts(bad)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            await texts(engine.submit(broken, [choice(1)]))
        return await found

    with caplog.at_level(logging.ERROR):
        assert with_engine(8, 4, both)[0]
    assert [record.getMessage() for record in caplog.records] == ["A model failed"] * 2
