"""How long each attention kind takes, and how much memory: `python -m benchmarks.attention --help`.

For every kind of `llm.model.attention` and every length: milliseconds forward, and forward and backward, their
TFLOP/s, on a GPU the peak of memory above the inputs, and the largest error of the output. The number of tokens is the
same for every length, so attention's share grows with it. Medians after warm-up; a GPU is waited for, and its L2 cache
is overwritten before each measurement, since in a model other layers do that.

TFLOP/s count what causal attention needs, half of T²: 2·B·H·T²·E forward, and 2.5 times that backward (scores again,
and four products). What a kind computes beyond that (`reference` and SDPA's plain kernel: the other half) is not
counted, so that the figures compare. Kinds that cannot run on the device are listed with the reason.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from llm.errors import WordmillError
from llm.model.attention import ATTENTIONS
from llm.model.flash import flash

KINDS: dict[str, Callable[..., Tensor]] = {**ATTENTIONS, "flash": flash}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = {
    "kind": "kind",
    "length": "T",
    "forward_ms": "forward ms",
    "forward_tflops": "TFLOP/s",
    "both_ms": "+ backward ms",
    "both_tflops": "TFLOP/s",
    "peak_mib": "peak MiB",
    "error": "max error",
    "reason": "",
}


def main(
    lengths: Annotated[str, typer.Option(help="tokens of context")] = "",
    kinds: Annotated[str, typer.Option(help="of " + ", ".join(KINDS))] = "",
    tokens: Annotated[int, typer.Option(help="in a batch, all lengths; 0: 16384 on a GPU, 2048 on a CPU")] = 0,
    heads: int = 16,
    kv_heads: int = 4,
    d_head: int = 64,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16")] = "bf16",
    seconds: Annotated[float, typer.Option(help="of measuring, for each figure")] = 1.0,
    out: Annotated[Path, typer.Option(help="the figures as JSON")] = Path("runs/benchmarks/attention.json"),
) -> None:
    """Measures every attention kind."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    rows = []
    for length in map(int, (lengths or ("512,1024,4096" if gpu else "512,1024")).split(",")):
        shape = max(1, (tokens or (16384 if gpu else 2048)) // length), heads, kv_heads, length, d_head
        for kind in (kinds or (",".join(KINDS) if gpu else "reference,fused")).split(","):
            rows.append({"kind": kind, "length": length, **measure(KINDS[kind], shape, DTYPES[dtype], device, seconds)})
            typer.echo(line(rows[-1]) if len(rows) > 1 else f"{line(COLUMNS)}\n{line(rows[-1])}")
    about = {
        "device": torch.cuda.get_device_name() if gpu else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "heads": heads,
        "kv_heads": kv_heads,
        "d_head": d_head,
        "dtype": dtype,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    typer.echo(f"\n{', '.join(f'{name} {value}' for name, value in about.items())}\nwritten to {out}")


def measure(
    attend: Callable[..., Tensor],
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """The figures of one row, or the reason why there are none."""
    B, H, K, T, E = shape
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, dout = (
        torch.randn(B, T, heads, E, device=device, generator=generator, dtype=torch.float32).to(dtype).transpose(1, 2)
        for heads in (H, K, K, H)
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def forward() -> None:
        with torch.no_grad():
            attend(*inputs)

    def both() -> None:
        torch.autograd.grad(attend(*inputs), inputs, dout)

    try:
        both()  # compiles, if anything is to be compiled
        before = _peak(device, reset=True)
        both()
        peak = _peak(device) - before
        forward_ms, both_ms = _median_ms(forward, device, seconds), _median_ms(both, device, seconds)
        with torch.no_grad():
            exact = ATTENTIONS["reference"](*(x[:1].float() for x in inputs))
            error = (attend(*(x[:1] for x in inputs)).float() - exact).abs().max().item()
    except (WordmillError, torch.OutOfMemoryError) as problem:
        return {"reason": str(problem).split(". ")[0]}
    tera = 2 * B * H * T * T * E / 1e12
    return {
        "forward_ms": round(forward_ms, 3),
        "forward_tflops": round(tera / forward_ms * 1000, 3),
        "both_ms": round(both_ms, 3),
        "both_tflops": round(3.5 * tera / both_ms * 1000, 3),
        "peak_mib": round(peak / 2**20, 1) if device.type == "cuda" else None,
        "error": float(f"{error:.1e}"),
    }


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [str("" if row.get(name) is None else row[name]) for name in COLUMNS]
    return f"{cells[0]:<10}" + "".join(f"{cell:>14}" for cell in cells[1:-1]) + f"  {cells[-1]}"


def _median_ms(run: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Milliseconds of one call: the median of as many as fit into `seconds`, at least five."""
    took: list[float] = []
    cache = torch.empty(64 * 2**20, dtype=torch.int32, device=device) if device.type == "cuda" else None
    run()
    until = time.monotonic() + seconds
    while len(took) < 5 or time.monotonic() < until:
        if cache is None:
            start = time.perf_counter()
            run()
            took.append((time.perf_counter() - start) * 1000)
        else:
            cache.zero_()
            events = [torch.cuda.Event(enable_timing=True) for _ in "ab"]
            events[0].record()
            run()
            events[1].record()
            torch.cuda.synchronize()
            took.append(events[0].elapsed_time(events[1]))
    return sorted(took)[len(took) // 2]


def _peak(device: torch.device, reset: bool = False) -> int:
    """Bytes: the most that was allocated since the last reset."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    typer.run(main)
