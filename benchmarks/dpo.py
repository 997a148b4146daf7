"""Pairs a second of our DPO and of TRL's: `python -m benchmarks.dpo --help` (needs the extra `bench`).

Both train a Llama of one shape on the same pairs of random tokens, half prompt, half answer, with bf16 autocast over
fp32 weights, AdamW, and reference log-probabilities that were computed before. TRL gets its fastest setting: no
gradient checkpointing, no saving, no logging, pairs that are tokens already. Ours is `llm.dpo.dpo` as the stage runs
it. Each runs in a process of its own, so that the peak of memory is its own; they take turns, and the figure is the
median of the rounds. Within a round the time is taken from the end of its first step to the end of its last, so
nothing of the set-up counts.
"""

import importlib.util
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.shapes import SMOLLM2_VOCABULARY, llama, smollm2_135m
from llm.compute import Compute, ComputeConfig
from llm.dpo import DPOConfig, dpo
from llm.model.layouts import LAYOUTS
from llm.model.transformer import Transformer
from llm.pair_scoring import Pairs, WholeAnswers
from llm.scoring import Segment

SHAPES = {  # configuration and vocabulary
    "4M": (llama(4, 8, 4, 256, 704, 256), 4096),
    "135M": (smollm2_135m(256), SMOLLM2_VOCABULARY),
}


def main(
    shape: Annotated[str, typer.Option(help="of " + ", ".join(SHAPES))] = "4M",
    batch: Annotated[int, typer.Option(help="pairs a step")] = 8,
    steps: Annotated[int, typer.Option(help="timed, a round")] = 5,
    rounds: int = 3,
    threads: int = 2,
    out: Annotated[Path, typer.Option(help="the figures as JSON")] = Path("runs/benchmarks/dpo.json"),
) -> None:
    """Measures both, in turns."""
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed; pip install -c constraints.txt -e '.[bench]'", file=sys.stderr)
        raise typer.Exit(2)
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, run in (("ours", ours), ("trl", trl)):
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(run, there, shape, batch, steps, threads), daemon=True)
        process.start()
        there.close()  # or its death would not be seen
        workers[name] = here
        here.recv()  # ready: one after the other, so that no set-up disturbs the other's
    figures: dict[str, dict[str, Any]] = {name: {"pairs_per_second": []} for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            worker.send("run")
            seconds, peak = worker.recv()
            figures[name]["pairs_per_second"].append(batch * steps / seconds)
            figures[name]["peak_gib"] = peak / 2**20
    medians = {name: statistics.median(found["pairs_per_second"]) for name, found in figures.items()}
    for name, found in figures.items():
        each = ", ".join(f"{value:.2f}" for value in found["pairs_per_second"])
        print(f"{shape} {name}: {medians[name]:.2f} pairs/s ({each}), peak {found['peak_gib']:.2f} GiB")
    print(f"{shape}: {medians['ours'] / medians['trl']:.2f} times TRL's pairs/s")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"shape": shape, "batch": batch, **figures}, indent=2) + "\n")


def serve(run: Any, pipe: Connection, shape: str, batch: int, steps: int, threads: int) -> None:
    """A contender's process: one round for each word that comes."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(threads)
    pipe.send("ready")
    while pipe.recv():
        pipe.send((run(shape, batch, steps, threads), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def random_pairs(count: int, vocab_size: int, length: int) -> WholeAnswers:
    random = np.random.default_rng(1)
    chosen, rejected = [], []
    for _ in range(count):
        prompt = random.integers(1, vocab_size, length // 2)
        for side in (chosen, rejected):
            answer = random.integers(1, vocab_size, length - length // 2)
            side.append(Segment(np.concatenate([prompt, answer]), len(prompt)))
    return WholeAnswers(Pairs(chosen, rejected, cut=0))


def ours(shape: str, batch: int, steps: int, threads: int) -> float:
    """Seconds of `steps` steps."""
    config, vocab_size = SHAPES[shape]
    policy = Transformer(config, vocab_size)
    policy.initialise(1)
    pairs = random_pairs(batch * (steps + 1), vocab_size, config.block_size)
    held_out = random_pairs(1, vocab_size, config.block_size)
    settings = DPOConfig(
        scope="answers",
        loss="sigmoid",
        label_smoothing=0.0,
        beta=0.1,
        sft_weight=0.0,
        lr=1e-5,
        final_lr_share=0.1,
        warmup_steps=1,
        epochs=1,
        batch_size=batch,
        weight_decay=0.0,
        grad_clip=1.0,
        seed=1,
        log_every=1,
        eval_every=steps + 1,
        checkpoint_every=steps + 2,
    )
    compute = Compute(ComputeConfig(device="cpu", precision="bf16", tf32=False, compile=False, threads=threads))
    ends = []
    with tempfile.TemporaryDirectory() as scratch:
        for record in dpo(policy, pairs, held_out, settings, compute, Path(scratch)):
            if "lr" in record.values:
                ends.append(time.perf_counter())
    return ends[-1] - ends[0]


def trl(shape: str, batch: int, steps: int, threads: int) -> float:
    """Seconds of `steps` steps."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    config, vocab_size = SHAPES[shape]
    pairs = random_pairs(batch * (steps + 1), vocab_size, config.block_size)
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *rest: Any, **named: Any) -> None:
            ends.append(time.perf_counter())

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
            return dataset  # is tokens already

    with tempfile.TemporaryDirectory() as scratch:
        args = DPOConfig(
            output_dir=scratch,
            beta=0.1,
            max_steps=steps + 1,
            per_device_train_batch_size=batch,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=True,
            logging_steps=steps + 2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        records = [
            {
                "prompt_ids": chosen.tokens[: chosen.first].tolist(),
                "chosen_ids": chosen.tokens[chosen.first :].tolist(),
                "rejected_ids": rejected.tokens[rejected.first :].tolist(),
            }
            for chosen, rejected in zip(pairs.chosen, pairs.rejected, strict=True)
        ]
        words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(vocab_size)}, unk_token="<0>"))
        trainer = Tokenised(
            LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **LAYOUTS["llama"].settings(config))),
            args=args,
            train_dataset=Dataset.from_list(records),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", eos_token="<0>"),
            callbacks=[Clock()],
        )
        trainer.train()
    return ends[-1] - ends[0]


if __name__ == "__main__":
    typer.run(main)
