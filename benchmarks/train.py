"""How many tokens a second training takes in, ours against others: `python -m benchmarks.train --help`.

A step is forward, backward, clipping and optimizer on one fixed random batch, in bf16 with fp32 weights. Ours is what
the pretrain stage does in a step, guard included, without its logging. The peer is transformers' Llama of the same
shape under bf16 autocast, with SDPA, its default, and torch's fused AdamW. Both also through torch.compile. litgpt is
not among them: up to 0.5.13 it does not install beside the pinned huggingface-hub.

Each contestant has a process of its own, as in use: what ours tells the allocator (llm/compute.py) is not the peer's.
`--share-allocator` tells it to all, for the other question. They take turns, round by round, so that a machine that
slows down slows all of them; the figures are the median over the rounds and the range. Compiling and warming up are
not counted. The fraction of peak sets PaLM's count of operations (llm/model/counts.py) against a large bf16 product,
measured anew in each round.
"""

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from llm.compute import Compute, ComputeConfig, keep_freed_memory
from llm.gradients import Batch, backward
from llm.model.config import ModelConfig
from llm.model.counts import flops_per_token
from llm.model.transformer import Transformer
from llm.optim.adamw import adamw
from llm.optim.guard import Guard

Step = Callable[[], Any]

LR, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0
# Size: vocabulary, batch, layers, heads, key-value heads, width, feed-forward width. 135m is SmolLM2's.
SIZES = {"tiny": (4096, 16, 6, 4, 4, 256, 768), "135m": (49152, 4, 30, 9, 3, 576, 1536)}


def main(
    size: Annotated[str, typer.Option(help="of " + ", ".join(SIZES))] = "tiny",
    length: Annotated[int, typer.Option(help="tokens of context")] = 256,
    batch_size: Annotated[int, typer.Option(help="sequences a step; 0: the size's own")] = 0,
    contestants: Annotated[str, typer.Option(help="of ours, ours-compiled, llama, llama-compiled")] = "",
    rounds: int = 5,
    seconds: Annotated[float, typer.Option(help="of training, for each contestant in each round")] = 2.0,
    threads: int = 2,
    share_allocator: Annotated[bool, typer.Option(help="what ours tells the allocator holds for all")] = False,
    out: Annotated[Path, typer.Option(help="the figures as JSON")] = Path("runs/benchmarks/train.json"),
) -> None:
    """Measures training steps, contestants in turn."""
    batch_size = batch_size or SIZES[size][1]
    names = (contestants or "ours,ours-compiled,llama,llama-compiled").split(",")
    if unknown := [name for name in names if name.removesuffix("-compiled") not in MAKERS]:
        raise typer.BadParameter(
            f"--contestants: {unknown[0]} is not one of ours, ours-compiled, llama, llama-compiled"
        )
    context = multiprocessing.get_context("spawn")
    processes = {}
    for name in names:
        here, there = context.Pipe()
        job = (there, name, size, length, batch_size, seconds, threads, share_allocator)
        context.Process(target=serve, args=job, daemon=True).start()
        there.close()  # or its death would not be seen
        here.recv()  # it is warm: no two compile at once
        processes[name] = here
    compute = computing(threads, compiled=False)
    rates: dict[str, list[float]] = {name: [] for name in names}
    peaks = []
    for _ in range(rounds):
        peaks.append(compute.measure_peak())
        for name, process in processes.items():
            process.send("measure")
            rates[name].append(batch_size * length * process.recv())
    for process in processes.values():
        process.send("")
    config, vocab_size = shape(size, length)
    peak = statistics.median(peaks)
    rows = [
        {
            "contestant": name,
            "tokens_per_second": round(statistics.median(rate)),
            "lowest": round(min(rate)),
            "highest": round(max(rate)),
            "fraction_of_peak": round(statistics.median(rate) * flops_per_token(config, vocab_size) / peak, 4),
        }
        for name, rate in rates.items()
    ]
    about = {
        "size": size,
        "length": length,
        "batch_size": batch_size,
        "device": str(compute),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rounds": rounds,
        "share_allocator": share_allocator,
        "peak_gflops": round(peak / 1e9),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    typer.echo("".join(f"{column:>20}" for column in rows[0]))
    for row in rows:
        typer.echo("".join(f"{value:>20}" for value in row.values()))
    typer.echo(f"\n{', '.join(f'{name} {value}' for name, value in about.items())}\nwritten to {out}")


def shape(size: str, length: int) -> tuple[ModelConfig, int]:
    """The model of `size` for a context of `length`, and its vocabulary."""
    vocab_size, _, n_layer, n_head, n_kv_head, d_model, d_ff = SIZES[size]
    config = ModelConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_kv_head=n_kv_head,
        d_model=d_model,
        d_ff=d_ff,
        block_size=length,
        attention="fused",
        position="rope",
        rope_theta=10000.0,
        norm="rmsnorm",
        norm_eps=1e-5,
        qk_norm=False,
        feed_forward="swiglu",
        bias=False,
        dropout=0.0,
        tie_head=True,
    )
    return config, vocab_size


def computing(threads: int, compiled: bool) -> Compute:
    return Compute(ComputeConfig(device="auto", precision="bf16", tf32=False, compile=compiled, threads=threads))


def serve(
    driver: Connection,
    name: str,
    size: str,
    length: int,
    batch_size: int,
    seconds: float,
    threads: int,
    share_allocator: bool,
) -> None:
    """The process of one contestant: warms up, says so, and sends the steps a second of each round asked for."""
    kind = name.removesuffix("-compiled")
    config, vocab_size = shape(size, length)
    compute = computing(threads, compiled=kind != name)
    ids = torch.randint(vocab_size, (batch_size, length + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(0, ids[:, :-1].contiguous().to(compute.device), ids[:, 1:].contiguous().to(compute.device))
    if kind == "ours" or share_allocator:
        keep_freed_memory()
    step = MAKERS[kind](config, vocab_size, batch, compute)
    for _ in range(3):
        step()
    driver.send("warm")
    while driver.recv():  # until it is told that there is nothing left to do
        driver.send(steps_per_second(step, seconds, compute.device))


def ours(config: ModelConfig, vocab_size: int, batch: Batch, compute: Compute) -> Step:
    """A step of llm/pretrain.py."""
    model = Transformer(config, vocab_size)
    model.initialise(0)
    model.to(compute.device).train()
    hidden = compute.compiled(model.hidden)
    optimizer = adamw(model, LR, BETAS, DECAY)
    guard = Guard(compute.device, allowed=0, scaling=False)

    def step() -> None:
        loss, _ = backward(model, hidden, batch, len(batch.inputs), 0, compute, guard)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.found_inf = guard.judge(0, loss, norm)  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()

    return step


def llama(config: ModelConfig, vocab_size: int, batch: Batch, compute: Compute) -> Step:
    """A step of transformers' Llama, as one writes it by hand."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            max_position_embeddings=config.block_size,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_head,
            use_cache=False,
        )
    )
    model.to(compute.device).train()  # type: ignore[arg-type]
    run = compute.compiled(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)

    def step() -> None:
        with compute.autocast():
            loss = run(input_ids=batch.inputs, labels=batch.targets, shift_labels=batch.targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


MAKERS: dict[str, Callable[..., Step]] = {"ours": ours, "llama": llama}


def steps_per_second(step: Step, seconds: float, device: torch.device) -> float:
    """Over as many steps as fit into `seconds`, at least one; a GPU is waited for."""
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() < start + seconds:
        step()
        count += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    typer.run(main)
