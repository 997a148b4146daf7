"""What `pretrain.recompute_activations` saves and costs: `python -m benchmarks.recompute [--batch 4] [--length 256]`.

Forward and backward of one batch of SmolLM2-135M's shape in bf16, with and without, in turn, each in a process of its
own: seconds, processor seconds, and how far memory rises above what there was before, weights and gradients included.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import psutil
import torch

from benchmarks.shapes import SMOLLM2_VOCABULARY, smollm2_135m
from llm.compute import Compute, ComputeConfig
from llm.gradients import Batch, backward
from llm.model.transformer import Transformer
from llm.optim.guard import Guard

STEPS = 3  # measured, after one that is not


def measured(recompute: bool, batch_size: int, length: int) -> tuple[float, float, int]:
    """Median seconds, processor seconds, and bytes above those before the first batch."""
    threads = len(os.sched_getaffinity(0))
    compute = Compute(ComputeConfig(device="auto", precision="bf16", tf32=False, compile=False, threads=threads))
    model = Transformer(smollm2_135m(length), SMOLLM2_VOCABULARY)
    model.initialise(1)
    model.to(compute.device).train()
    model.recompute = recompute
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    ids = torch.randint(SMOLLM2_VOCABULARY, (batch_size, length + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(0, ids[:, :-1].to(compute.device), ids[:, 1:].to(compute.device))
    guard = Guard(compute.device, 0, compute.scales_loss)
    on_gpu = compute.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    seconds, processor = [], []
    for _ in range(1 + STEPS):
        begun, used = time.perf_counter(), time.process_time()
        loss, _ = backward(model, model.hidden, batch, batch_size, 0, compute, guard)
        loss.item()
        seconds.append(time.perf_counter() - begun)
        processor.append(time.process_time() - used)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics.median(seconds[1:]), statistics.median(processor[1:]), peak - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", choices=["kept", "recomputed"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one == "recomputed", given.batch, given.length)))
        return
    for _ in range(given.rounds):
        for name in ("kept", "recomputed"):
            command = [sys.executable, "-m", "benchmarks.recompute", *sys.argv[1:], "--one", name]
            printed = subprocess.run(command, capture_output=True, check=True).stdout
            seconds, processor, peak = json.loads(printed.splitlines()[-1])  # a library may print before it
            print(
                f"{name:10} {seconds:6.2f} s, CPU {processor:6.2f} s, {peak / 1e9:5.2f} GB more",
                flush=True,
            )


if __name__ == "__main__":
    main()
