"""Pretraining: one straight loop. Batch, forward, backward, clip, step, log, evaluate, sample, checkpoint.

`pretrain` is a generator: it yields a `Record` whenever there is something to tell, and the caller decides where that
goes. After a kill it is called again with the same arguments: it first yields the records of the checkpoint it found,
then goes on, and ends with the very bytes of an uninterrupted run. That holds because a batch is a function of
(seed, step), so are the learning rate and what dropout drops, and the optimizer's state is restored bit for bit.

A step whose loss or gradient is not finite is never applied. What happens then is `on_nonfinite`: `stop` ends the run
with the name of the module that went wrong (llm/nonfinite.py), `skip` leaves out up to `max_skips` such steps first.

What is logged, beyond loss, learning rate and speed, are the early signs of trouble: the gradient's norm before
clipping, the parameters' norm, the size of an update relative to the weights (about 1e-3 is healthy), and the entropy
of the predictions (ln V at the start; near 0 means collapse).

Several processes that share each batch (llm/parallel.py) run this same loop side by side.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from llm import checkpoint, nonfinite
from llm.batches import ahead
from llm.compiling import trial
from llm.compute import Compute, keep_freed_memory
from llm.devices import memory_for
from llm.errors import WordmillError
from llm.gradients import Batch, backward, needs_places
from llm.model.attention import check_attention
from llm.model.counts import flops_per_token
from llm.model.exact import same_formula
from llm.model.transformer import Transformer
from llm.optim.guard import Guard, apply
from llm.optim.optimizers import OPTIMIZERS, Settings
from llm.optim.schedules import SCHEDULES, decay_steps
from llm.parallel import Parallel, whole
from llm.pretrain_config import PretrainConfig
from llm.training_state import Record, best, restore, save, saved_tensors

ALONE = Parallel()
OF_A_RUN = ("optimizer", "batch_size", "seed", "packing")  # what a checkpoint's state has a meaning for


class BatchSource(Protocol):
    """`batch(step)` gives inputs and targets, both (batch_size, T) int64: a function of the step alone.

    So is `positions(step)`: the document of every input, and its place in it. Asked for only to mask documents.
    """

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]: ...
    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]: ...


def pretrain(
    model: Transformer,
    batches: BatchSource,
    config: PretrainConfig,
    compute: Compute,
    evaluate: Callable[[Transformer], dict[str, float]],
    sample: Callable[[Transformer], str],
    checkpoints: Path,
    stopping: Callable[[], bool] = lambda: False,
    parallel: Parallel = ALONE,
    origin: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """Train `model` in place, or go on from the newest checkpoint under `checkpoints`.

    `origin` says, beside the model's settings, of what a checkpoint is (tokenizer, shards); one of another origin is
    refused.

    Once `stopping` says so, the step at hand is finished, a checkpoint written, and the records end. `evaluate` and
    `sample` see the model in the middle of training and must not draw from torch's global generators.

    Of several processes each calls it with its own share of the batches, and gets the same records. The first one alone
    evaluates, samples, writes checkpoints, and is asked whether to stop.

    Raises WordmillError, with what to change, where memory runs out.
    """
    advice = "lower pretrain.micro_batch_size, or set pretrain.recompute_activations: true"
    with memory_for(
        f"pretraining on {compute.device} with pretrain.micro_batch_size {config.micro_batch_size}", advice
    ):
        yield from _pretrain(model, batches, config, compute, evaluate, sample, checkpoints, stopping, parallel, origin)


def _pretrain(
    model: Transformer,
    batches: BatchSource,
    config: PretrainConfig,
    compute: Compute,
    evaluate: Callable[[Transformer], dict[str, float]],
    sample: Callable[[Transformer], str],
    checkpoints: Path,
    stopping: Callable[[], bool],
    parallel: Parallel,
    origin: Mapping[str, Any] | None,
) -> Iterator[Record]:
    check_attention(model.config, compute.device)
    keep_freed_memory()
    model.to(compute.device).train()
    model.recompute = config.recompute_activations
    hidden = parallel.hidden(model, compute)
    settings = Settings(
        lr=config.lr,
        muon_lr=config.muon_lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        dtype=torch.bfloat16 if compute.dtype == torch.bfloat16 else torch.float32,
    )
    optimizer = OPTIMIZERS[config.optimizer](model, settings)
    guard = Guard(compute.device, config.max_skips if config.on_nonfinite == "skip" else 0, compute.scales_loss)
    lasting = {name: getattr(config, name) for name in OF_A_RUN}
    origin = {**_of_model(model), **(origin or {})}
    start, records = restore(model, optimizer, checkpoints, guard.state, lasting)
    if start == 0 and config.continue_from:
        start, records = restore(model, optimizer, Path(config.continue_from), guard.state, lasting, origin)
        if not 0 < start < config.steps:
            raise WordmillError(
                f"pretrain.continue_from: {config.continue_from} "
                + (f"is after step {start}; raise pretrain.steps above it" if start else "holds no whole checkpoint")
            )
    parallel.require_same(start)
    yield from records
    if config.steps == 0:
        figures = parallel.on_first(model, evaluate)
        yield Record(0, {"tokens": 0.0, "flops": 0.0} | {f"val_{k}": v for k, v in figures.items()})
        return
    load = partial(_batch, batches, config, compute, parallel.rank, placed=needs_places(model))
    if compute.config.compile and parallel.kind == "none" and start < config.steps:
        trial(model, hidden, load(start), config.micro_batch_size, config.steps - start, compute, guard)
    flops_per_step = 0
    before_decay = last_before_decay(config)
    peak = compute.measure_peak() * parallel.world
    watch = _Stopwatch()
    with checkpoint.Writer(checkpoints, config.checkpoints_kept) as writer:
        for step, batch in ahead(load, range(start, config.steps)):
            done = step + 1
            last = done == config.steps
            logging = done % config.log_every == 0 or last or done == 1
            evaluating = done % config.eval_every == 0 or last
            sampling = done % config.sample_every == 0 or last
            regular = done % config.checkpoint_every == 0 or last or done == before_decay
            lr = learning_rate(config, step, config.lr)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, group["peak"])

            loss, states = backward(
                model, hidden, batch, config.micro_batch_size, config.seed, compute, guard, parallel.micro_batch
            )
            parallel.mean(loss)
            guard.unscale(model)
            grad_norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip))
            before = [w.detach().clone() for w in model.parameters()] if logging else []
            apply(optimizer, guard.judge(step, loss, grad_norm))
            optimizer.zero_grad()
            tokens = batch.inputs.numel() * parallel.world
            flops_per_step = flops_per_token(model.config, model.vocab_size) * tokens

            # Where looking means waiting for the device, look only when there is a reason to wait anyway.
            if logging or evaluating or sampling or regular or compute.in_step:
                frozen_at = guard.frozen_at()
                if frozen_at is not None:
                    bad = parallel.gathered_batch(load(frozen_at))
                    report = partial(
                        nonfinite.report, batch=bad, settings=config, compute=compute, guard=guard, folder=checkpoints
                    )
                    raise WordmillError(parallel.on_first(model, report))
            if logging:
                values = {
                    "loss": loss.item(),
                    "lr": lr,
                    "grad_norm": grad_norm.item(),
                    "param_norm": _norm(before),
                    "update_ratio": _norm([w - b for w, b in zip(model.parameters(), before, strict=True)])
                    / _norm(before),
                    "logit_entropy": parallel.agree(_entropy(whole(model.head.weight), states[0]), parallel.world - 1),
                    "tokens": float(done * tokens),
                    "flops": float(done * flops_per_step),
                    **guard.figures(),
                }
                values = {
                    name: value for name, value in values.items() if math.isfinite(value)
                }  # a skipped step's are not
                rate = watch.lap(done - step if done == 1 else config.log_every)
                machine = {
                    "tokens_per_second": rate * tokens,
                    "fraction_of_peak": rate * flops_per_step / peak,
                    "memory_gb": _memory(compute) / 1e9,
                }
                records.append(Record(done, values, machine))
                yield records[-1]
            if evaluating:
                with watch.paused():
                    figures = parallel.on_first(model, evaluate)
                    records.append(Record(done, {f"val_{k}": v for k, v in figures.items()}))
                    yield records[-1]
            if sampling:
                with watch.paused():
                    records.append(Record(done, text=parallel.on_first(model, sample)))
                    yield records[-1]
            writer.check()
            stop = bool(parallel.agree(stopping()))
            if regular or stop or (evaluating and best(records, "val_loss") == done):
                with watch.paused():
                    tensors = parallel.gathered(saved_tensors(model, optimizer, guard.state))
                    if parallel.rank == 0:
                        kept = () if before_decay is None else (before_decay,)
                        save(writer, done, tensors, records, "val_loss", lasting, origin, kept)
            if stop:
                return


def learning_rate(config: PretrainConfig, step: int, peak: float) -> float:
    """The rate of step `step` (from 0) for a group of weights whose largest is `peak`."""
    schedule = SCHEDULES[config.schedule]
    return schedule(step, config.steps, config.warmup_steps, peak, config.final_lr_share, config.decay_share)


def last_before_decay(config: PretrainConfig) -> int | None:
    """wsd: the finished steps after which the rate begins to fall, whose checkpoint a longer run can go on from."""
    if config.schedule != "wsd":
        return None
    return config.steps - decay_steps(config.steps, config.warmup_steps, config.decay_share)


def _of_model(model: Transformer) -> dict[str, Any]:
    """The model's settings that a checkpoint has a meaning with; how attention is computed and dropout are free."""
    free = {"dropout"} | ({"attention"} if same_formula(model.config.attention) else set())
    free |= set() if model.config.position == "rope" else {"rope_theta"}
    known = {name: value for name, value in asdict(model.config).items() if name not in free}
    return {f"model.{name}": value for name, value in {**known, "vocab_size": model.vocab_size}.items()}


def _batch(
    batches: BatchSource, config: PretrainConfig, compute: Compute, rank: int, step: int, placed: bool = False
) -> Batch:
    compute.use_in_thread()  # it is called in another one

    def put(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if compute.device.type == "cuda":  # from pinned memory the copy goes on beside the computation
            tensor = tensor.pin_memory()
        return tensor.to(compute.device, non_blocking=True)

    x, y = map(put, batches.batch(step))
    if not config.mask_documents:
        return Batch(step, x, y, first=rank * len(x))
    documents, places = batches.positions(step)
    return Batch(step, x, y, put(documents), put(places) if placed else None, rank * len(x))


class _Stopwatch:
    """Seconds of training between two logs, pauses taken out."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()

    def lap(self, steps: int) -> float:
        """Steps a second since the last lap."""
        now = time.perf_counter()
        rate = steps / (now - self.begun)
        self.begun = now
        return rate

    def paused(self) -> "_Pause":
        return _Pause(self)


class _Pause:
    def __init__(self, watch: _Stopwatch) -> None:
        self.watch = watch

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.watch.begun += time.perf_counter() - self.start


def _norm(tensors: list[Tensor]) -> float:
    return torch.linalg.vector_norm(torch.stack([whole(torch.linalg.vector_norm(t.detach())) for t in tensors])).item()


@torch.no_grad()
def _entropy(head: Tensor, states: Tensor) -> float:
    """Mean entropy in nats of the predictions from states (T, D) of one sequence under head weights (V, D)."""
    logprobs = F.linear(states.float(), head).log_softmax(dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1).mean().item()


def _memory(compute: Compute) -> int:
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device)
    return psutil.Process().memory_info().rss
