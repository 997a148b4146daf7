"""Every path that touches a device, on simulated GPUs: `tests/simulated.py` says what they hold code to."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from llm import devices, nonfinite, nvidia
from llm.compute import Compute, ComputeConfig
from llm.dpo import DPOConfig, dpo
from llm.errors import WordmillError
from llm.export import gguf
from llm.generate import generate
from llm.gradients import Batch, backward, needs_places
from llm.model import attention as attention_module
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.optim.guard import Guard
from llm.pair_scoring import SCOPES, Pairs
from llm.parallel import PATIENCE, Parallel
from llm.pretrain import PretrainConfig, pretrain
from llm.sampling import Sampling, draw
from llm.scoring import Segment, pair_logprobs, predictions, score
from tests.conftest import TINY
from tests.llm import test_training as training
from tests.simulated import DeviceMistake, Machine, OnDevice, simulate

V = 64
ALL = Sampling(0.8, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1)
CUDA = ComputeConfig(device="cuda", precision="bf16", tf32=False, compile=False, threads=1)
AUTO = replace(CUDA, device="auto", precision="auto")
GPT2: dict[str, Any] = {
    "position": "learned",
    "norm": "layernorm",
    "feed_forward": "gelu",
    "bias": True,
    "n_kv_head": 4,
}
PRETRAIN = replace(
    training.PRETRAIN,
    steps=3,
    batch_size=4,
    micro_batch_size=2,
    log_every=2,
    eval_every=2,
    sample_every=3,
    checkpoint_every=2,
)


@pytest.fixture(params=["cuda:3", "mps"])
def gpu(request: pytest.FixtureRequest, no_peak: None) -> Iterator[Machine]:
    """A machine with four of NVIDIA's GPUs of which this process has the last, or with Apple's."""
    kind, _, index = request.param.partition(":")
    with simulate(kind) as machine:
        if index:
            torch.cuda.set_device(int(index))
        yield machine


class Source:
    """Batches of one and the same text, in two documents."""

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = (np.random.default_rng(step).integers(0, V, (4, 1)) + np.arange(33)) % V
        return tokens[:, :-1], tokens[:, 1:]

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.tile((np.arange(32) >= 20).astype(np.int64), (4, 1))
        return numbers, np.tile(np.concatenate([np.arange(20), np.arange(12)]), (4, 1))


def model_of(config: ModelConfig = TINY) -> Transformer:
    model = Transformer(config, V)
    model.initialise(1)
    return model


def segments(count: int, seed: int = 0) -> list[Segment]:
    drawn = np.random.default_rng(seed)
    return [Segment(drawn.integers(1, V, drawn.integers(4, 33)), int(drawn.integers(1, 4))) for _ in range(count)]


def trained(config: ModelConfig, settings: PretrainConfig, compute: Compute, at: Path, stop: int = 0) -> Transformer:
    """After pretraining with evaluation, samples and checkpoints; it must be on the device at the end."""
    model = model_of(config)

    def evaluate(model: Transformer) -> dict[str, float]:
        return {"loss": float(-predictions(model, segments(3), compute).logprobs.mean())}

    def sample(model: Transformer) -> str:
        return str(generate(model, [[1, 2, 3]], 3, Sampling(0.8), 1, -1, compute))

    asked = iter(range(1, 1000))
    records = list(
        pretrain(model, Source(), settings, compute, evaluate, sample, at, lambda: next(asked) == stop, Parallel())
    )
    assert all(np.isfinite(list(record.values.values())).all() for record in records)
    assert {weight.device for weight in model.parameters()} == {compute.device}
    return model


def numbers(model: Transformer) -> torch.Tensor:
    return torch.cat([weight.detach().cpu().flatten() for weight in model.parameters()])


VARIANTS: dict[str, list[tuple[dict[str, Any], dict[str, Any], Any]]] = {
    "cuda": [
        ({"dropout": 0.1, "qk_norm": True}, {"mask_documents": True, "recompute_activations": True}, "auto"),
        ({"attention": "reference"}, {"optimizer": "muon", "on_nonfinite": "skip"}, "fp16"),
    ],
    "mps": [
        (GPT2, {"mask_documents": True}, "auto"),
        ({"position": "sinusoidal"}, {"optimizer": "muon"}, "fp16"),
        ({}, {"optimizer": "adamw_reference"}, "auto"),
    ],
}


def test_a_training_stops_and_resumes_to_the_same_bytes(gpu: Machine, tmp_path: Path) -> None:
    for number, (change, settings, precision) in enumerate(VARIANTS[gpu.kind]):
        config, how = replace(TINY, n_layer=1, **change), replace(PRETRAIN, **settings)
        compute = Compute(replace(AUTO, precision=precision))
        whole = trained(config, how, compute, tmp_path / f"whole{number}")
        parts = tmp_path / f"parts{number}"
        trained(config, how, compute, parts, stop=1)
        assert torch.equal(numbers(whole), numbers(trained(config, how, compute, parts)))
    if gpu.kind == "cuda":  # the prefetch thread, too: what it pins and copies belongs to this GPU's context
        assert set().union(*gpu.contexts.values()) == {compute.device.index}
        assert len(gpu.contexts) > 1


@pytest.mark.parametrize("scope", SCOPES)
def test_dpo_trains_and_scores(gpu: Machine, tmp_path: Path, scope: Any) -> None:
    drawn = np.random.default_rng(2)
    sides: tuple[list[Segment], list[Segment]] = ([], [])
    for _ in range(8):
        prompt, answer = drawn.integers(1, V, 5), drawn.integers(1, V, 6)
        other = np.concatenate([answer[:3], (answer[3:] + 1) % V])
        for side, tokens in zip(sides, (answer, other), strict=True):
            side.append(Segment(np.concatenate([prompt, tokens]), 5))
    pairs = SCOPES[scope](Pairs(*sides, cut=0))
    settings = DPOConfig(
        scope=scope, loss="sigmoid", label_smoothing=0.0, beta=0.1, sft_weight=0.5, lr=1e-3, final_lr_share=0.1,
        warmup_steps=1, epochs=1, batch_size=4, weight_decay=0.0, grad_clip=1.0, seed=1, log_every=1, eval_every=1,
        checkpoint_every=1,
    )  # fmt: skip
    records = list(dpo(model_of(), pairs, pairs, settings, Compute(AUTO), tmp_path))
    assert records[-1].step == 2


def test_scoring_and_generation_are_the_cpus(gpu: Machine, compute: Compute) -> None:
    here = Compute(replace(AUTO, precision="fp32"))
    given = segments(21)
    on_gpu, on_cpu = score(model_of().to(here.device), given, here), score(model_of(), given, compute)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-5)
    with torch.no_grad():
        pairs = pair_logprobs(model_of().to(here.device), given[:8], given[8:16], here)
    np.testing.assert_allclose(pairs.cpu().flatten(), on_cpu[:16], rtol=1e-5)
    prompts = [[1, 2, 3], [4], list(range(5, 25)), *([[7, 8]] * 7)]
    for sampling, limit, past in ((ALL, 36, "slide"), (Sampling(0.0), 8, "stop")):
        texts = [generate(model_of(), prompts, limit, sampling, 3, 0, c, past_context=past) for c in (here, compute)]  # type: ignore[arg-type]
        assert texts[0] == texts[1]


def test_the_detective_names_the_module_and_replays(gpu: Machine, tmp_path: Path) -> None:
    model = model_of()
    with torch.no_grad():
        model.blocks[1].feed_forward.down.weight[0, 0] = float("nan")
    compute = Compute(AUTO)
    how = replace(PRETRAIN, mask_documents=True)
    with pytest.raises(WordmillError, match=r"first in forward, blocks\.1\.feed_forward\.down, weight"):
        list(pretrain(model, Source(), how, compute, lambda m: {"loss": 0.0}, lambda m: "", tmp_path))
    bundle = next(tmp_path.glob("nonfinite-step-*"))
    assert json.loads((bundle / "step.json").read_text())["compute"]["device"] == compute.device.type
    for device in (None, "cpu"):
        finding = nonfinite.replay(bundle, device)
        assert finding is not None
        assert finding.module == "blocks.1.feed_forward.down"


def test_a_model_goes_to_the_disk_and_into_other_forms(gpu: Machine, tmp_path: Path) -> None:
    compute = Compute(AUTO)
    model = model_of().to(compute.device)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    expected = folder.fingerprint(model_of())
    assert folder.fingerprint(model) == expected
    folder.save(model.cpu(), tmp_path / "model", tmp_path, 0)
    loaded = folder.load(tmp_path / "model")
    assert folder.fingerprint(loaded) == expected
    assert all(values.shape for _, values, _ in gguf._tensors(loaded, "llama"))


def test_tokens_are_drawn_as_on_the_host(gpu: Machine) -> None:
    here = Compute(AUTO).device
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(1))
    uniforms = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for sampling in (Sampling(0.7), Sampling(1.3, top_p=0.8), Sampling(0.7, top_k=5)):
        drawn = draw(logits.to(here), uniforms, sampling)
        assert drawn.device == here
        assert drawn.tolist() == draw(logits, uniforms, sampling).tolist()


def test_the_engine_of_a_server_may_generate_in_a_thread(gpu: Machine) -> None:
    """A new thread begins at device 0; what it makes must be where the model is."""
    compute = Compute(AUTO)
    model, found = model_of().to(compute.device), []
    thread = threading.Thread(target=lambda: found.append(generate(model, [[1], [2, 3]], 9, ALL, 1, 0, compute)))
    thread.start()
    thread.join()
    assert found


def test_the_simulation_refuses_what_a_gpu_refuses() -> None:
    with simulate("cuda"):
        one, other = torch.ones(2, device="cuda:1"), torch.ones(2, device="cuda")
        assert str(other.device) == "cuda:0"
        for mistake in (lambda: one + other, lambda: one + torch.ones(2), lambda: torch.cat([one, other])):
            with pytest.raises(DeviceMistake):
                mistake()
        with pytest.raises(TypeError, match="numpy"):
            one.numpy()
        assert isinstance(one + 1, OnDevice)
        assert (one * torch.tensor(3.0)).tolist() == [3, 3]
    with simulate("mps"), pytest.raises(TypeError, match="float64"):
        torch.ones(2, device="mps").double()


def test_a_device_has_an_index_and_auto_says_why(gpu: Machine) -> None:
    compute = Compute(AUTO)
    assert compute.device.index == gpu.current
    assert compute.why.startswith("auto: torch found")
    assert compute.uncompiled().device == compute.device
    if gpu.kind == "cuda":
        assert Compute(CUDA, index=2).device == torch.device("cuda", 2)
        assert torch.cuda.current_device() == 2
        assert "deterministic" in str(compute)
    else:
        assert "run on the CPU" in str(compute)


def test_few_shapes_reach_attention_outside_pretraining(gpu: Machine) -> None:
    """A GPU's libraries make a plan for each new shape."""
    config = replace(TINY, block_size=256, n_layer=1)
    compute = Compute(AUTO)
    model, drawn = model_of(config).to(compute.device), np.random.default_rng(1)
    prompts = [drawn.integers(1, V, drawn.integers(1, 60)).tolist() for _ in range(17)]
    generate(model, prompts, 24, Sampling(2.0), 1, 0, compute)
    assert len(set(gpu.attention)) <= 8
    gpu.attention.clear()
    texts = [Segment(drawn.integers(0, V, drawn.integers(10, 257)), 1) for _ in range(128)]
    predictions(model, texts, compute)
    assert len(set(gpu.attention)) <= 12
    assert all(q[2] % 64 == 0 and q[0] % 8 == 0 for q, _, _ in gpu.attention)
    gpu.attention.clear()
    with torch.no_grad():
        for start in range(0, 64, 16):
            pair_logprobs(model, texts[start : start + 8], texts[start + 8 : start + 16], compute)
    assert len(set(gpu.attention)) <= 4
    assert gpu.kind == "mps" or not any(gpu.cudnn)


@pytest.mark.parametrize("deterministic", [True, False])
def test_cudnn_computes_attention_in_pretraining_alone(tmp_path: Path, no_peak: None, deterministic: bool) -> None:
    with simulate("cuda") as gpu:
        compute = Compute(replace(CUDA, deterministic=deterministic))
        trained(replace(TINY, n_head=8, n_kv_head=8), PRETRAIN, compute, tmp_path)
        training_calls = {shape for shape, cudnn in zip(gpu.attention, gpu.cudnn, strict=True) if cudnn}
        assert training_calls == (set() if deterministic else {((2, 8, 32, 4), (2, 8, 32, 4), False)})
        assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("wanted", [True, False])
def test_what_deterministic_promises_is_set_before_cuda_starts(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with simulate("cuda"):
        seen: list[Any] = []
        current = torch.cuda.current_device
        monkeypatch.setattr(
            torch.cuda,
            "current_device",
            lambda: [seen.append(devices.os.environ.get("CUBLAS_WORKSPACE_CONFIG")), current()][1],
        )
        Compute(replace(CUDA, deterministic=wanted))
        assert seen[0] == (":4096:8" if wanted else None)
        assert torch.are_deterministic_algorithms_enabled() is wanted
        assert torch.backends.cudnn.deterministic is wanted
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
        if wanted:
            with pytest.raises(WordmillError, match="CUBLAS_WORKSPACE_CONFIG"):
                Compute(replace(CUDA, deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_cpu_is_not_told_to_be_deterministic() -> None:
    """There it is so already, and its bytes stay what they were."""
    Compute(replace(CUDA, device="cpu", precision="fp32"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_cumulative_sums_without_a_scan() -> None:
    x = torch.rand(3, 200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with simulate("cuda"):
        torch.use_deterministic_algorithms(True)
        with pytest.raises(DeviceMistake, match="cumsum"):
            x.to("cuda").cumsum(-1)
        found = devices.cumulative_sums(x.to("cuda")).cpu()
        short = devices.cumulative_sums(x[:, :3].to("cuda")).cpu()
    torch.testing.assert_close(found, x.cumsum(-1), rtol=1e-12, atol=0)
    torch.testing.assert_close(short, x[:, :3].cumsum(-1), rtol=1e-12, atol=0)


def test_a_gpu_that_torch_cannot_use_is_no_reason_to_take_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    assert Compute(replace(AUTO, precision="fp32")).why == "auto: torch found no GPU"
    (tmp_path / "nvidia0").touch()
    with pytest.raises(WordmillError, match=r"^compute\.device: auto found an NVIDIA GPU.*without CUDA.*set cpu$"):
        Compute(AUTO)

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it.")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", too_old)
    for device in ("auto", "cuda"):
        with pytest.raises(WordmillError, match="driver on your system is too old") as found:
            Compute(replace(AUTO, device=device))  # type: ignore[arg-type]
        assert "\n" not in str(found.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Compute(replace(AUTO, precision="fp32")).device.type == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert Compute(replace(AUTO, device="cpu", precision="fp32")).device.type == "cpu"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 1 GB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:20],
)
def test_a_lack_of_memory_is_one_line(
    error: BaseException, tmp_path: Path, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Transformer, "hidden", fails)
    monkeypatch.setattr(Compute, "measure_peak", lambda self: 1.0)
    with pytest.raises(WordmillError, match=r"out of memory in pretraining.*lower pretrain\.micro_batch_size") as found:
        list(pretrain(model_of(), Source(), PRETRAIN, compute, lambda m: {"loss": 0.0}, lambda m: "", tmp_path))
    assert "\n" not in str(found.value)
    with pytest.raises(WordmillError, match="out of memory in scoring"):
        predictions(model_of(), segments(3), compute)
    with pytest.raises(WordmillError, match="out of memory in generation"):
        generate(model_of(), [[1]], 3, Sampling(), 1, 0, compute)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="a bug"), devices.memory_for("x", "y"):
        raise RuntimeError("a bug")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_torch_compile_needs_a_compiler_and_pythons_headers(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiles = replace(CUDA, device=device, precision="fp32", compile=True)  # type: ignore[arg-type]
    with simulate("cuda"):
        Compute(compiles)
        monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
        with pytest.raises(WordmillError, match="install python3-dev, or use false"):
            Compute(compiles)
        monkeypatch.setattr("shutil.which", lambda name: None)
        with pytest.raises(WordmillError, match=r"needs a C.* compiler here"):
            Compute(compiles)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_nobody_gives_the_first_process_up_while_it_writes(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **how: given.update(how, backend=backend))
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "new_group", lambda **how: None)
    Parallel(kind, "cuda")
    assert given == {"backend": "nccl", "timeout": PATIENCE}
    assert PATIENCE.total_seconds() >= 3600


@pytest.mark.parametrize("attention", ["fused", "flex"])
def test_a_mask_of_documents_is_made_once_for_all_layers(attention: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    masks: list[Any] = []
    for name in ("fused_mask", "_document_blocks"):
        monkeypatch.setattr(attention_module, name, noted(getattr(attention_module, name), made))
    monkeypatch.setattr(attention_module, "_require_flex", lambda device: None)
    monkeypatch.setattr(
        attention_module, "_compiled_flex", lambda: lambda q, *_, block_mask, **__: [q, masks.append(block_mask)][0]
    )
    model, ids = model_of(replace(TINY, n_layer=3, attention=attention)), torch.ones(2, 32, dtype=torch.long)
    documents = (torch.arange(32) >= 20).long().expand(2, 32)
    model.hidden(ids, documents=documents)
    assert len(made) == 1
    assert len({id(mask) for mask in masks}) == (attention == "flex")


def noted(function: Any, made: list[Any]) -> Any:
    return lambda *args: [function(*args), made.append(args)][0]


def test_a_mask_on_a_gpu_is_in_the_scores_format_and_heads_are_not_grouped() -> None:
    with simulate("cuda") as gpu:
        compute = Compute(CUDA)
        model, ids = model_of().to(compute.device), torch.ones(2, 32, dtype=torch.long, device=compute.device)
        documents = torch.zeros(2, 32, dtype=torch.long, device=compute.device)
        assert attention_module.fused_mask(documents, torch.bfloat16).dtype == torch.bfloat16
        with compute.autocast():
            model.hidden(ids, documents=documents)
        assert set(gpu.attention) == {((2, 4, 32, 8), (2, 4, 32, 8), True)}


@pytest.mark.parametrize(
    ("kv_heads", "length", "masked", "capability", "right"),
    [
        (8, 1024, True, 9, True),
        (8, 1024, False, 10, True),
        (8, 64, True, 9, False),
        (8, 192, True, 9, False),
        (8, 192, False, 9, True),
        (2, 1024, False, 9, True),
        (2, 1024, False, 10, False),
    ],
)
def test_cudnn_is_left_out_where_it_is_known_to_be_wrong(
    kv_heads: int, length: int, masked: bool, capability: int, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    config = replace(TINY, n_head=8, n_kv_head=kv_heads, block_size=length)
    assert attention_module.cudnn_is_right(config, masked, torch.device("cuda", 0)) is right


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_masked_documents_train_at_the_positions_of_evaluation(position: Any, compute: Compute) -> None:
    """The second document of a row has the loss that it has alone."""
    model = model_of(replace(TINY, position=position))
    ids = torch.randint(1, V, (1, 32), generator=torch.Generator().manual_seed(1))
    documents, places = (torch.from_numpy(part[:1]) for part in Source().positions(0))
    together = model.hidden(ids, documents=documents, places=places)
    torch.testing.assert_close(together[:, 20:], model.hidden(ids[:, 20:]))
    targets = ids.roll(-1)
    losses = []
    for batch in (Batch(0, ids, targets, documents, places), Batch(0, ids[:, 20:], targets[:, 20:])):
        guard = Guard(compute.device, 0, False)
        losses.append(backward(model, model.hidden, batch, 1, 0, compute, guard)[1][:, -12:])
    torch.testing.assert_close(*losses)
    assert needs_places(model)
    assert not needs_places(model_of())


@pytest.mark.parametrize("attention", ["flash", "flex"])
def test_attention_that_needs_a_gpu_is_refused_before_the_training(
    attention: Any, compute: Compute, tmp_path: Path
) -> None:
    model = model_of(replace(TINY, attention=attention))
    with pytest.raises(WordmillError, match=f"model.attention: {attention} needs"):
        next(pretrain(model, Source(), PRETRAIN, compute, lambda m: {"loss": 0.0}, lambda m: "", tmp_path))
