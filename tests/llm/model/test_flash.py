"""The flash attention kernels against the readable reference.

Most tests here need a GPU or Triton's interpreter, which has to be chosen before triton is imported and would then
hold for the whole session. So without a GPU one test runs this file once more, in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.errors import WordmillError
from llm.model import flash as module
from llm.model.attention import reference
from llm.model.flash import Tile, Tiles, flash, tiles

ROOT = Path(__file__).parents[3]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

try:
    import triton
except ImportError:
    triton = None

needs_triton = pytest.mark.skipif(triton is None, reason="needs triton, which is not installed")
runs_kernels = pytest.mark.skipif(
    triton is None or (DEVICE == "cpu" and not INTERPRETED),
    reason="needs a GPU and triton; without a GPU test_everything_in_the_interpreter runs it",
)


@needs_triton
@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="the kernels are tested directly")
def test_everything_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", str(Path(__file__).relative_to(ROOT))]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def draw(seed: int, B: int, H: int, K: int, T: int, E: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v and a gradient for the output."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, heads, T, E, generator=generator).to(DEVICE, dtype) for heads in (H, K, K, H)]


def results(attend: Any, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
    """The output and the gradients of q, k and v."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attend(*inputs, *more)
    return out.detach(), *torch.autograd.grad(out, inputs, dout)


def alone(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """The reference on each document by itself."""
    out = torch.empty_like(q)
    for b, row in enumerate(documents):
        for document in row.unique():
            own = (row == document).nonzero()[:, 0]
            out[b : b + 1, :, own] = reference(*(x[b : b + 1, :, own] for x in (q, k, v)))
    return out


def assert_equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for one, other, name in zip(ours, theirs, ("out", "dq", "dk", "dv"), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@runs_kernels
@pytest.mark.parametrize(
    ("B", "H", "K", "T", "E"),
    [
        (2, 2, 2, 1, 8),  # a single position
        (1, 4, 2, 16, 16),  # one tile of keys
        (1, 6, 2, 33, 24),  # one more than a tile; a width that is no power of two
        (1, 4, 1, 64, 64),  # one head of keys for all
        (2, 1, 1, 77, 20),
        (1, 3, 1, 50, 40),
        (1, 2, 2, 40, 128),  # the widest head
    ],
)
def test_outputs_and_gradients_equal_the_reference(B: int, H: int, K: int, T: int, E: int) -> None:
    inputs = draw(T, B, H, K, T, E)
    assert_equal(results(flash, *inputs), results(reference, *inputs))


@runs_kernels
@pytest.mark.parametrize("seed", range(4))
def test_random_shapes_and_documents(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def one_of(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    B, K, group, T, E = one_of(1, 2), one_of(1, 2), one_of(1, 3), one_of(1, 70), one_of(1, 40)
    inputs = draw(seed, B, K * group, K, T, E)
    documents = torch.randint(-3, 4, (B, T), generator=generator).to(DEVICE)
    if seed % 2:
        documents = documents.sort(dim=1).values  # packed one after the other, as in training
    assert_equal(results(flash, *inputs, documents), results(alone, *inputs, documents))
    assert_equal(results(flash, *inputs), results(reference, *inputs))


@runs_kernels
def test_tiles_of_other_documents_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Tile(64, 128, 1, 1)
    monkeypatch.setattr(module, "_INTERPRETED", Tiles(Tile(128, 64, 1, 1), Tile(128, 64, 1, 1), wide))  # fewer steps
    q, k, v, dout = draw(0, 1, 1, 1, 1200, 8)
    documents = (torch.arange(1200, device=DEVICE) // 40)[None]
    expected = results(alone, q, k, v, dout, documents)
    assert_equal(results(flash, q, k, v, dout, documents), expected)
    for x in (q, k, v):
        x[:, :, :40] = float("nan")  # in weights of zero this would still show
    rest = slice(128, None)  # after the tile that the first document shares
    assert_equal(
        tuple(x[:, :, rest] for x in results(flash, q, k, v, dout, documents)), tuple(x[:, :, rest] for x in expected)
    )


@runs_kernels
def test_nothing_outside_is_read_and_any_strides_will_do() -> None:
    B, H, K, T, E = 1, 2, 1, 37, 20
    inputs = draw(1, B, H, K, T, E)
    expected = results(reference, *inputs)
    hidden = []
    for x in inputs:  # as the model has them: heads beside each other, and around them what must not be met
        room = torch.full((B, T + 130, x.shape[1], E + 12), float("nan"), device=DEVICE).transpose(1, 2)
        room[:, :, :T, :E] = x
        hidden.append(room[:, :, :T, :E])
    assert_equal(results(flash, *hidden), expected)
    assert_equal(results(flash, *(x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs)), expected)
    spread = torch.ones(1, device=DEVICE).expand(B, H, T, E)
    assert_equal(results(flash, *inputs[:3], spread), results(reference, *inputs[:3], spread))


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_the_reference(dtype: torch.dtype) -> None:
    inputs = draw(2, 1, 2, 1, 45, 32, dtype)
    exact = results(reference, *(x.double() for x in inputs))
    for ours, theirs, truth in zip(results(flash, *inputs), results(reference, *inputs), exact, strict=True):
        assert ours.dtype == dtype
        assert (ours - truth).abs().max() <= 1.5 * (theirs - truth).abs().max()


@runs_kernels
def test_autocast_casts() -> None:
    q, k, v, _ = draw(7, 1, 2, 1, 20, 16)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = flash(q, k, v.bfloat16())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, flash(q.bfloat16(), k.bfloat16(), v.bfloat16()))


@runs_kernels
def test_large_scores_do_not_overflow() -> None:
    q, k, v, dout = draw(3, 1, 2, 1, 48, 16)
    q = 100 * q
    ours = results(flash, q, k, v, dout)
    torch.testing.assert_close(ours[0], reference(q, k, v), atol=1e-4, rtol=1e-4)
    assert all(x.isfinite().all() for x in ours)


@runs_kernels
def test_twice_the_same_bits() -> None:
    inputs = draw(4, 1, 2, 1, 40, 16)
    assert all(torch.equal(one, other) for one, other in zip(*(results(flash, *inputs) for _ in "ab"), strict=True))


@runs_kernels
def test_an_empty_batch_stays_empty() -> None:
    assert flash(*draw(5, 0, 2, 1, 7, 8)[:3]).shape == (0, 2, 7, 8)


@runs_kernels
def test_compiles_into_one_graph() -> None:
    inputs = draw(6, 1, 2, 1, 17, 16)
    documents = torch.zeros(1, 17, dtype=torch.int32, device=DEVICE)
    compiled = torch.compile(flash, backend="aot_eager", fullgraph=True)
    assert_equal(results(compiled, *inputs, documents), results(flash, *inputs, documents), 0)
    arguments = (*(x.requires_grad_() for x in inputs[:3]), documents)
    torch.library.opcheck(module._forward, arguments, test_utils=("test_schema", "test_autograd_registration"))


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize(
    ("capability", "kibibytes", "dtype", "d_head", "documents"),
    [(90, 228, torch.bfloat16, 128, True), (86, 100, torch.bfloat16, 64, False), (80, 164, torch.float32, 16, True)],
)
def test_kernels_compile_for_gpus(
    capability: int,
    kibibytes: int,
    dtype: torch.dtype,
    d_head: int,
    documents: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton brings its own assembler: what its compiler refuses, and too large a tile, show without a GPU."""
    from llm.model import flash_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = tiles(d_head, dtype, kibibytes * 1024)
    for name, tile in (("forward", sizes.forward), ("backward_queries", sizes.queries), ("backward_keys", sizes.keys)):
        kernel = getattr(flash_kernels, name)
        constants: dict[str, int | None] = {"H": 8, "GROUP": 2, "E": d_head, "WIDTH": d_head}
        constants |= {"ROWS": tile.rows, "COLUMNS": tile.columns} | ({} if documents else {"documents": None})
        types = {"documents": "*i32", "lse": "*fp32", "delta": "*fp32", "scale": "fp32", "T": "i32"}
        values = "*fp32" if dtype == torch.float32 else "*bf16"
        signature = {
            argument: "constexpr"
            if argument in constants
            else types.get(argument, "i32" if "_" in argument else values)
            for argument in kernel.arg_names
        }
        aligned = {  # pointers and strides are multiples of 16 in a real model
            (place,): [["tt.divisibility", 16]]
            for place, (argument, type) in enumerate(signature.items())
            if type != "constexpr" and argument not in ("scale", "T")
        }
        compiled = triton.compile(
            triton.compiler.ASTSource(kernel, signature, constants, aligned),
            target=triton.backends.compiler.GPUTarget("cuda", capability, 32),
            options={"num_warps": tile.warps, "num_stages": tile.stages},
        )
        assert compiled.asm["cubin"], name
        assert compiled.metadata.shared <= (kibibytes - 1) * 1024, name  # one is the system's


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs on a CPU")
def test_without_a_gpu_the_error_says_what_to_do() -> None:
    with pytest.raises(WordmillError, match=r"needs a CUDA GPU.*use fused.*TRITON_INTERPRET=1"):
        flash(*(torch.zeros(1, 1, 4, 8) for _ in "qkv"))


def test_without_triton_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(WordmillError, match="needs the package triton"):
        flash(*(torch.zeros(1, 1, 4, 8) for _ in "qkv"))


@pytest.mark.parametrize(
    ("shapes", "dtype", "error", "message"),
    [
        ([(1, 2, 4, 256)] * 3, torch.float32, WordmillError, "heads up to 128 wide, not 256"),
        ([(1, 2, 4, 8)] * 3, torch.float64, WordmillError, "takes bf16, fp16 and fp32"),
        ([(1, 3, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)], torch.float32, ValueError, "shapes do not fit"),
        ([(1, 2, 4, 8), (1, 2, 5, 8), (1, 2, 5, 8)], torch.float32, ValueError, "shapes do not fit"),
    ],
)
def test_what_it_cannot_do_is_named(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        flash(*(torch.zeros(shape, dtype=dtype) for shape in shapes))
