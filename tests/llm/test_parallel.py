"""Two processes on gloo train as one does, take up each other's checkpoints, and agree on how to end."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llm.compute import Compute, ComputeConfig
from llm.errors import ConfigError, WordmillError
from llm.model.transformer import Transformer
from llm.parallel import Parallel, check
from llm.pretrain import pretrain
from tests.conftest import TINY
from tests.llm import test_training as training

REPO = Path(__file__).parents[2]
STEPS, STOP = 50, 36
PRETRAIN = replace(
    training.PRETRAIN,
    steps=STEPS,
    batch_size=8,
    mask_documents=True,
    grad_clip=0.5,  # less than most norms
    eval_every=10,
    sample_every=10,
    checkpoint_every=1000,
    checkpoints_kept=1,
)
# What a run differs in: model, settings. Each is compared with one process that does the same.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "untied, dropout": ({"tie_head": False, "dropout": 0.1}, {"steps": 10, "recompute_activations": True}),
    "muon": ({}, {"steps": 10, "optimizer": "muon"}),
    "compiled": ({}, {"steps": 10}),
    "by hand": ({}, {"steps": 10, "optimizer": "adamw_reference"}),
}


class Share:
    """A process's rows of sequences that count upwards, with a mistake now and then; two documents in each."""

    def __init__(self, rank: int, world: int) -> None:
        self.rows = slice(rank * 8 // world, (rank + 1) * 8 // world)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.random.default_rng(step)
        tokens = (drawn.integers(0, 64, (8, 1)) + np.arange(17)) % 64
        tokens[drawn.random(tokens.shape) < 0.1] = 0
        return tokens[self.rows, :-1], tokens[self.rows, 1:]

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        documents = (np.arange(16) >= np.arange(8)[:, None] + 4).astype(np.int64)
        return documents[self.rows], documents[self.rows]


def train(
    parallel: Parallel, folder: Path, stop: int = 0, way: str = "plain", bad: bool = False, continue_from: str = ""
) -> list[Any]:
    """The records of a run, or of one that goes on, until `stop`; the error where it ends with one."""
    Compute.measure_peak = lambda self, seconds=0.3: 1.0  # type: ignore[method-assign]  # takes its time, tells nothing
    compiles = way == "compiled" and parallel.kind != "none"
    compute = Compute(ComputeConfig(device="cpu", precision="fp32", tf32=False, compile=compiles, threads=1))
    of_model, of_training = WAYS[way]
    model = Transformer(replace(TINY, **of_model), 64)
    model.initialise(1)
    if bad:
        model.blocks[1].feed_forward.down.weight.data[3, 5] = float("nan")
    settings = replace(
        PRETRAIN, parallel=parallel.kind, processes=parallel.world, continue_from=continue_from, **of_training
    )

    @torch.no_grad()
    def evaluate(model: Transformer) -> dict[str, float]:
        assert parallel.rank == 0
        model.eval()
        x, y = (torch.from_numpy(part) for part in Share(0, 1).batch(1000))
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
        model.train()
        return {"loss": loss}

    @torch.no_grad()
    def sample(model: Transformer) -> str:
        model.eval()
        text = str(model(torch.arange(8)[None]).argmax(-1).tolist())
        model.train()
        return text

    steps = count(1)

    def stopping() -> bool:
        return parallel.rank == 0 and next(steps) == stop  # a signal reaches the first one alone

    share = Share(parallel.rank, parallel.world)
    records = pretrain(model, share, settings, compute, evaluate, sample, folder, stopping, parallel)
    try:
        with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):  # its own code takes a minute
            return [{"step": r.step, "text": r.text, **r.values} for r in records]
    except WordmillError as error:
        return [str(error)]


def work(jobs: list[dict[str, Any]]) -> None:
    """In each of two processes: trainings one after the other. Every process writes down what it was told."""
    for job in jobs:
        at = Path(job["at"])
        parallel = Parallel(job["kind"])
        if "source" in job and parallel.rank == 0:
            shutil.copytree(job["source"], at)
        parallel.agree(0)  # until it is there
        told = train(parallel, at, **job.get("how", {}))
        at.with_name(f"{at.name}-{parallel.rank}.json").write_text(json.dumps(told))
    parallel.close()


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the records of all runs by two processes, `NAME-RANK.json`, and what they left there."""
    at = tmp_path_factory.mktemp("parallel")
    train(Parallel(), at / "stopped by one", STOP)
    jobs: list[dict[str, Any]] = []
    for kind in ("ddp", "fsdp2"):
        jobs += [
            {"kind": kind, "at": f"{at}/{kind} stopped", "how": {"stop": STOP}},
            {"kind": kind, "at": f"{at}/{kind}", "source": f"{at}/{kind} stopped"},
            {"kind": kind, "at": f"{at}/one to {kind}", "how": {"continue_from": f"{at}/stopped by one"}},
            {"kind": kind, "at": f"{at}/{kind} untied, dropout", "how": {"way": "untied, dropout"}},
            {"kind": kind, "at": f"{at}/{kind} compiled", "how": {"way": "compiled"}},
            {"kind": kind, "at": f"{at}/{kind} bad", "how": {"bad": True}},
        ]
    jobs.append({"kind": "ddp", "at": f"{at}/ddp muon", "how": {"way": "muon"}})
    jobs.append({"kind": "fsdp2", "at": f"{at}/fsdp2 by hand", "how": {"way": "by hand"}})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "import json, sys; from tests.llm.test_parallel import work; work(json.loads(sys.argv[1]))"
    shared = {**os.environ, "PYTHONPATH": str(REPO), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(2):
        with (at / f"errors-{rank}").open("w") as errors:
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = [sys.executable, "-c", command, json.dumps(jobs)]
            processes.append(
                subprocess.Popen(arguments, env=environment, stderr=errors, stdout=subprocess.DEVNULL, cwd=at)
            )
    try:
        for process in processes:
            process.wait(120)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, (at / f"errors-{rank}").read_text()[-3000:]
    return at


def told(at: Path, name: str, rank: int) -> Any:
    return json.loads((at / f"{name}-{rank}.json").read_text())


def assert_same_curve(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [list(record) for record in found] == [list(record) for record in expected]
    for record, other in zip(found, expected, strict=True):
        assert (record["step"], record["text"]) == (other["step"], other["text"])
        for figure in {"loss", "val_loss"} & set(other):
            assert abs(record[figure] - other[figure]) < 1e-5, record["step"]
        for figure in set(other) - {"text", "step"}:
            assert record[figure] == pytest.approx(other[figure], rel=1e-4), figure


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What one process tells, by way."""
    return {way: train(Parallel(), tmp_path_factory.mktemp("one"), way=way) for way in WAYS}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("ddp", "plain"),  # stopped and resumed by two
        ("fsdp2", "plain"),
        ("one to ddp", "plain"),
        ("one to fsdp2", "plain"),
        ("ddp untied, dropout", "untied, dropout"),
        ("fsdp2 untied, dropout", "untied, dropout"),
        ("ddp compiled", "compiled"),
        ("fsdp2 compiled", "compiled"),
        ("ddp muon", "muon"),
        ("fsdp2 by hand", "by hand"),
    ],
)
def test_two_tell_what_one_does(at: Path, one: dict[str, list[dict[str, Any]]], name: str, way: str) -> None:
    assert max(record.get("grad_norm", 0) for record in one[way]) > 2 * PRETRAIN.grad_clip  # it had to be clipped
    assert_same_curve(told(at, name, 0), one[way])
    assert told(at, name, 1) == told(at, name, 0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_one_goes_on_from_a_checkpoint_of_two(at: Path, one: dict[str, list[dict[str, Any]]], kind: str) -> None:
    for rank in (0, 1):  # both ended at the same step, though the first one alone was asked
        assert told(at, f"{kind} stopped", rank)[-1]["step"] == STOP
    assert_same_curve(train(Parallel(), at / f"{kind} to one", continue_from=f"{at}/{kind} stopped"), one["plain"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_the_module_that_went_wrong_is_named(at: Path, kind: str) -> None:
    (line,) = train(Parallel(), at / f"one bad, beside {kind}", bad=True)
    assert "first in forward, blocks.1.feed_forward.down, weight (32×48" in line
    for rank in (0, 1):
        assert told(at, f"{kind} bad", rank) == [line.replace(f"one bad, beside {kind}", f"{kind} bad")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"processes": 2}, "processes: 2 need parallel: ddp or fsdp2"),
        ({"parallel": "ddp", "processes": 0}, "processes: 0 is below 1"),
        ({"parallel": "ddp", "processes": 3}, "make batch_size a multiple of 6"),
        ({"parallel": "ddp", "processes": 8}, "lower micro_batch_size, or make batch_size a multiple of 16"),
        ({"parallel": "fsdp2", "processes": 2, "optimizer": "muon"}, "muon needs whole; use ddp, or adamw"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PRETRAIN, **change)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("fsdp2", {"precision": "fp16"}, r"compute\.precision: fp16 does not go with pretrain\.parallel: fsdp2"),
    ],
)
def test_machines_that_do_not_fit_are_refused(kind: Any, change: dict[str, Any], message: str) -> None:
    settings = ComputeConfig(device="cpu", precision="fp32", tf32=False, compile=False, threads=1)
    with pytest.raises(WordmillError, match=message):
        check(kind, 2, Compute(replace(settings, **change)))
