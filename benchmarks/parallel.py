"""Several processes against one: the same losses, and how fast.

    python -m benchmarks.parallel [--processes 2] [--steps 50] [--device cpu] [--out FOLDER]

The default's training, of a model of 3.7 million weights in fp32, on tokens drawn from the step's number: by one
process, by `ddp` and by `fsdp2`, each in processes of its own that torchrun starts. On a processor the threads are
shared among them. Prints a table and writes parallel.json: the largest difference of a step's loss from one
process's, and tokens/s,
the median over the steps after the first ten. Exit status 1 where a difference is 1e-5 or more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.shapes import llama
from llm.compute import Compute, ComputeConfig
from llm.model.transformer import Transformer
from llm.parallel import Parallel
from llm.pretrain import PretrainConfig, pretrain
from stages.params import load

REPO = Path(__file__).parents[1]
BATCH, MICRO, LENGTH, VOCABULARY = 16, 4, 256, 2048
WARM = 10  # steps before speed is counted
MODEL = llama(4, 4, 4, 256, 704, LENGTH)


@dataclass(frozen=True)
class Sections:
    """What is read of the default: how it trains."""

    pretrain: PretrainConfig


class Drawn:
    """A process's rows of what step N trains on: walks through the vocabulary, with a jump now and then."""

    def __init__(self, rank: int, world: int) -> None:
        self.rows = slice(rank * BATCH // world, (rank + 1) * BATCH // world)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.random.default_rng(step)
        steps = np.where(drawn.random((BATCH, LENGTH + 1)) < 0.1, drawn.integers(0, VOCABULARY, (BATCH, 1)), 1)
        tokens = steps.cumsum(axis=1) % VOCABULARY
        return tokens[self.rows, :-1], tokens[self.rows, 1:]

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        places = np.tile(np.arange(LENGTH), (BATCH, 1))[self.rows]
        return np.zeros_like(places), places  # a row is one document


def train(kind: str, steps: int, device: str, out: Path) -> None:
    """In each process: the training; the first one writes down losses and seconds by step."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = max(1, len(os.sched_getaffinity(0)) // here)
    compute = Compute(ComputeConfig(device=device, precision="fp32", tf32=False, compile=False, threads=threads))  # type: ignore[arg-type]
    parallel = Parallel(kind, compute.device.type)  # type: ignore[arg-type]
    usual = load(Sections, REPO / "presets/default.yaml").pretrain
    settings = replace(
        usual,
        steps=steps,
        batch_size=BATCH,
        micro_batch_size=MICRO,
        recompute_activations=False,
        packing="windows",
        lr=1e-3,
        warmup_steps=5,
        log_every=1,
        eval_every=steps,
        sample_every=steps,
        checkpoint_every=steps,
        parallel=parallel.kind,
        processes=parallel.world,
    )
    model = Transformer(MODEL, VOCABULARY)
    model.initialise(1)
    batches = Drawn(parallel.rank, parallel.world)
    losses, times = [], []
    with tempfile.TemporaryDirectory() as scratch:
        told = pretrain(model, batches, settings, compute, lambda m: {}, lambda m: "", Path(scratch), parallel=parallel)
        for record in told:
            if "loss" in record.values:
                losses.append(record.values["loss"])
                times.append(perf_counter())
    if parallel.rank == 0:
        seconds = [after - before for before, after in pairwise(times)]
        found = {"losses": losses, "tokens_per_second": BATCH * LENGTH / median(seconds[WARM:])}
        out.write_text(json.dumps({**found, "on": str(compute), "processes": parallel.world}))
    parallel.close()


def measured(kind: str, processes: int, steps: int, device: str, folder: Path) -> dict[str, Any]:
    """What one kind gives, in processes of its own."""
    out = folder / f"{kind}.json"
    launcher = [sys.executable]
    if kind != "none":
        launcher += ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        launcher += [f"--nproc-per-node={processes}"]
    work = ["-m", "benchmarks.parallel", "--work", kind, "--steps", str(steps), "--device", device, "--out", str(out)]
    shared = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run([*launcher, *work], env=shared, check=True)
    return json.loads(out.read_text())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel", description="Several processes against one.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        train(given.work, given.steps, given.device, given.out)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        kinds = ("none", "ddp", "fsdp2")
        runs = {kind: measured(kind, given.processes, given.steps, given.device, Path(folder)) for kind in kinds}
    rows = []
    for kind, run in runs.items():
        apart = max(abs(a - b) for a, b in zip(run["losses"], runs["none"]["losses"], strict=True))
        rows.append({"parallel": kind, **{k: run[k] for k in ("processes", "on", "tokens_per_second")}})
        rows[-1] |= {"first_loss": run["losses"][0], "last_loss": run["losses"][-1], "largest_difference": apart}
    result = {"torch": torch.__version__, "steps": given.steps, "tokens_per_step": BATCH * LENGTH, "rows": rows}
    (given.out / "parallel.json").write_text(json.dumps(result, indent=2) + "\n")
    print("| parallel | processes | tokens/s | loss, first and last | largest difference of a step's loss |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        losses = f"{row['first_loss']:.4f}, {row['last_loss']:.4f}"
        print(
            f"| {row['parallel']} | {row['processes']} | {row['tokens_per_second']:,.0f} | {losses} "
            f"| {row['largest_difference']:.1e} |"
        )
    sys.exit(max(row["largest_difference"] for row in rows) >= 1e-5)


if __name__ == "__main__":
    main()
