"""Tokens a second of our generation and of transformers': `python -m benchmarks.generate --help`.

Both continue the same random prompts greedily with a Llama of one shape and one set of weights, by a fixed number of
tokens: ours by `llm.generate.Writing` over the compiled decoder, as `wordmill generate` does, transformers by
`generate` with its cache. Each in fp32 and in bf16 (ours: weights in bf16, sums in fp32; transformers: all in bf16).
Reading the prompts counts; loading, compiling and a first round do not.

The contestants take turns, round by round in one process. Torch and numba each have threads of their own, which stay
awake a while after their work: a pause before each turn lets them go to sleep. The figures are medians of the rounds.
The share of the memory's bandwidth is that of the weights, read once a step, against the fastest reading of a large
array, measured in each round.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from benchmarks.shapes import SMOLLM2_VOCABULARY, llama, smollm2_135m
from llm.compiled_decoder import CompiledDecoder
from llm.compute import Compute, ComputeConfig
from llm.generate import Writing
from llm.model.layouts import LAYOUTS
from llm.model.transformer import Transformer
from llm.sampling import Sampling, Uniforms

SHAPES = {  # configuration and vocabulary
    "4M": (llama(6, 8, 4, 256, 704, 512), 4096),
    "135M": (smollm2_135m(512), SMOLLM2_VOCABULARY),
}
Run = Callable[[list[list[int]], int], list[list[int]]]


def main(
    shapes: Annotated[str, typer.Option(help="of " + ", ".join(SHAPES))] = "4M,135M",
    batches: str = "1,16",
    prompt: Annotated[int, typer.Option(help="tokens of each prompt")] = 32,
    tokens: Annotated[int, typer.Option(help="new tokens of each")] = 96,
    rounds: int = 3,
    threads: int = 2,
    pause: Annotated[float, typer.Option(help="seconds before each turn")] = 0.2,
    out: Annotated[Path, typer.Option(help="the figures as JSON")] = Path("runs/benchmarks/generate.json"),
) -> None:
    """Measures both, in turns."""
    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    bandwidths: list[float] = []
    for shape in shapes.split(","):
        config, vocab_size = SHAPES[shape]
        model = Transformer(config, vocab_size)
        model.initialise(1)
        contestants: dict[str, Run] = {}
        for precision in ("fp32", "bf16"):
            contestants[f"ours {precision}"] = ours(model, precision, threads)
            contestants[f"transformers {precision}"] = theirs(model, precision)
        weights = sum(weight.numel() for weight in model.parameters())
        for batch in map(int, batches.split(",")):
            generator = torch.Generator().manual_seed(1)
            prompts = torch.randint(1, vocab_size, (batch, prompt), generator=generator).tolist()
            for run in contestants.values():
                assert all(len(row) == tokens for row in run(prompts, tokens))
            seconds: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(rounds):
                bandwidths.append(bandwidth())
                for name, run in contestants.items():
                    time.sleep(pause)
                    start = time.perf_counter()
                    run(prompts, tokens)
                    seconds[name].append(time.perf_counter() - start)
            for name, found in seconds.items():
                size = weights * (4 if name.endswith("fp32") else 2)
                speeds = sorted(batch * tokens / each for each in found)
                speed = statistics.median(speeds)
                share = speed / batch * size / statistics.median(bandwidths)
                rows.append(
                    {
                        "shape": shape,
                        "batch": batch,
                        "contestant": name,
                        "tokens_per_second": round(speed, 1),
                        "lowest": round(speeds[0], 1),
                        "highest": round(speeds[-1], 1),
                        "share_of_bandwidth": round(share, 3),
                    }
                )
                typer.echo("".join(f"{value:>20}" for value in rows[-1].values()))
            typer.echo(
                f"{shape}, batch {batch}: {times(rows[-4:]):.2f} times transformers' tokens/s, best against best"
            )
    about = {
        "prompt": prompt,
        "tokens": tokens,
        "threads": threads,
        "rounds": rounds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bandwidth_gb": round(statistics.median(bandwidths) / 1e9, 1),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    typer.echo(f"columns: {', '.join(rows[0])}\n{about}\nwritten to {out}")


def times(rows: list[dict[str, Any]]) -> float:
    """Our best over their best."""
    best = {
        who: max(row["tokens_per_second"] for row in rows if row["contestant"].startswith(who))
        for who in ("ours", "transformers")
    }
    return best["ours"] / best["transformers"]


def bandwidth() -> float:
    """Bytes a second that a sum over 256 MiB reads, the best of five."""
    array = torch.ones(2**26)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        array.sum()
        seconds.append(time.perf_counter() - start)
    return array.numel() * 4 / min(seconds)


def ours(model: Transformer, precision: Any, threads: int) -> Run:
    compute = Compute(ComputeConfig(device="cpu", precision=precision, tf32=False, compile=False, threads=threads))
    decoder = CompiledDecoder(model, compute)

    def run(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        writing = Writing(decoder, prompts, [Uniforms(1)] * len(prompts), tokens, Sampling(0.0), -1, "stop")
        while writing.going:
            writing.step()
        return writing.written

    return run


def theirs(model: Transformer, precision: str) -> Run:
    layout = LAYOUTS["llama"]
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=model.vocab_size, **layout.settings(model.config))
    )
    llama.load_state_dict({name: view.clone() for name, view in layout.views(model).items()}, strict=False)
    llama.tie_weights()
    llama.to({"fp32": torch.float32, "bf16": torch.bfloat16}[precision]).eval()  # type: ignore[arg-type]

    @torch.inference_mode()
    def run(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        found = llama.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        return found[:, ids.shape[1] :].tolist()

    return run


if __name__ == "__main__":
    typer.run(main)
