"""Training by several processes: torch's DistributedDataParallel and FSDP2 behind one small interface.

Process r of W trains on the r-th share of each batch (llm/batches.py), in the very micro-batches of a single process:
the gradient is the same for every W, but for the order in which numbers are added.

- `ddp`: each process has the whole model; gradients are averaged during backward (Li et al. 2020, arXiv:2006.15704).
- `fsdp2`: each process has 1/W of every weight, its gradient and its optimizer state; a block's weights are gathered
  when it is needed (Zhao et al. 2023, arXiv:2304.11277; torch's `fully_shard`).

Gradients are exchanged once a step, after the last micro-batch. Loss and gradient norm are made global before anything
is decided by them, so all processes decide alike; what the first one alone knows (a validation loss, a sample, a wish
to stop) it tells the others. Checkpoints hold whole tensors in the format of one process: they load in any number.

A process makes one process group in its life: a second one, at the address of the first, was seen to wait for ever for
its peers (docs/LOG.md), so a `Parallel` joins the group that is there.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from llm.compute import Compute
from llm.errors import WordmillError
from llm.gradients import Batch
from llm.model.transformer import Transformer
from llm.pretrain_config import ParallelKind

PATIENCE = timedelta(hours=2)  # of those who wait for the first process, which evaluates; torchrun sees a death


def check(kind: ParallelKind, processes: int, compute: Compute) -> None:
    """Raises WordmillError where `processes` of `kind` on this machine do not go with `compute`."""
    if kind == "none":
        return
    device = compute.device.type
    if device == "mps":
        raise WordmillError(f"pretrain.parallel: {kind} runs on cpu and cuda, not on mps; set compute.device: cpu")
    if device == "cuda" and processes > torch.cuda.device_count():
        raise WordmillError(
            f"pretrain.processes: each needs a GPU; here are {torch.cuda.device_count()} for {processes}"
        )
    if kind == "fsdp2" and compute.scales_loss:
        raise WordmillError("compute.precision: fp16 does not go with pretrain.parallel: fsdp2; use bf16 or fp32")


class Parallel:
    """One of `world` processes; of kind `none` it is the only one, and every method is free."""

    def __init__(self, kind: ParallelKind = "none", device: str = "cpu") -> None:
        """Kinds other than `none` need a process that torchrun has started. `device` is cpu or cuda.

        On cuda a `Compute` with the process's own GPU comes first, which makes that GPU the current one.
        """
        self.kind = kind
        self.rank, self.world = 0, 1
        self._module: nn.Module | None = None
        if kind == "none":
            return
        if not distributed.is_initialized():
            # Others wait for the first process while it writes, too: nccl's own patience is ten minutes.
            distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self._talk = distributed.new_group(backend="gloo", timeout=PATIENCE)  # on the host: a GPU is not waited for

    def hidden(self, model: Transformer, compute: Compute) -> Callable[..., Tensor]:
        """The model's `hidden`, to be called for each micro-batch; with `fsdp2` the model's weights become shards."""
        if self.kind == "none":
            return compute.compiled(model.hidden)
        for block in (
            model.blocks if compute.config.compile else ()
        ):  # each by itself: what gathers weights and gradients stays outside
            block.forward = compute.compiled(block.forward)
        root = _Hidden(model)
        if self.kind == "ddp":
            ddp = self._module = nn.parallel.DistributedDataParallel(root, gradient_as_bucket_view=True)
            return ddp
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(compute.device.type, (self.world,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        # The root keeps its weights gathered until backward has passed: the loss takes the head's from the model.
        fully_shard(root, mesh=mesh)
        self._module = root
        return root

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: gradients are exchanged after the last of a step only."""
        if isinstance(self._module, nn.parallel.DistributedDataParallel) and not last:
            with self._module.no_sync():
                yield
            return
        if self.kind == "fsdp2":
            self._module.set_requires_gradient_sync(last)  # type: ignore[union-attr, operator]
        yield

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes, in place."""
        if self.world > 1:
            distributed.all_reduce(value)
            value /= self.world
        return value

    def agree(self, value: float, rank: int = 0) -> float:
        """What the process `rank` says."""
        if self.world == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(told, rank, group=self._talk)
        return told.item()

    def require_same(self, step: int) -> None:
        """Raises WordmillError in a process that would begin after another step than the first one."""
        first = int(self.agree(step))
        if first != step:
            raise WordmillError(
                f"process {self.rank} found a checkpoint of step {step}, the first one of step {first}; "
                "all machines must share one folder"
            )

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors at the first process, none at the others; all must call it."""
        if self.kind != "fsdp2":
            return dict(tensors) if self.rank == 0 else {}
        found = {}
        for name, tensor in tensors.items():
            full = whole(tensor)
            if self.rank == 0:
                found[name] = full.cpu()  # the first GPU has no room for all of them
        return found

    def gathered_batch(self, batch: Batch) -> Batch:
        """The whole batch of which every process has its share, at all of them."""
        if self.world == 1:
            return batch
        shares = (batch.inputs, batch.targets, batch.documents, batch.places)
        return Batch(batch.step, *(None if share is None else self._rows(share) for share in shares))  # type: ignore[arg-type]

    def _rows(self, share: Tensor) -> Tensor:
        mine = share.cpu().contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        distributed.all_gather(parts, mine, group=self._talk)
        return torch.cat(parts).to(share.device)

    def on_first(self, model: Transformer, work: Callable[[Transformer], Any]) -> Any:
        """What `work` gives with the whole model at the first process, as JSON holds it, at all; all must call it."""
        if self.kind == "none":
            return work(model)
        told = b""
        if self.kind == "fsdp2":
            weights = self.gathered(dict(model.named_parameters()))
            if self.rank == 0:
                told = json.dumps(work(_unsharded(model, weights))).encode()
        elif self.rank == 0:
            with _eager(model):
                told = json.dumps(work(model)).encode()
        size = int(self.agree(len(told)))
        text = torch.frombuffer(bytearray(told), dtype=torch.uint8) if told else torch.empty(size, dtype=torch.uint8)
        distributed.broadcast(text, 0, group=self._talk)
        return json.loads(text.numpy().tobytes())

    def close(self) -> None:
        """Leave the group, for good."""
        if self.kind != "none":
            distributed.destroy_process_group()


class _Hidden(nn.Module):
    """`hidden` as a forward pass, which is what DDP and FSDP2 hook into."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, documents: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        return self.model.hidden(ids, documents=documents, places=places)


@contextmanager
def _eager(model: Transformer) -> Iterator[None]:
    """Within, blocks run uncompiled: evaluation and samples have other shapes at each call."""
    compiled = [vars(block).pop("forward", None) for block in model.blocks]
    try:
        yield
    finally:
        for block, forward in zip(model.blocks, compiled, strict=True):
            if forward is not None:
                block.forward = forward


def _unsharded(model: Transformer, weights: Mapping[str, Tensor]) -> Transformer:
    copy = Transformer(model.config, model.vocab_size).to(next(model.parameters()).device)
    with torch.no_grad():
        for name, weight in copy.named_parameters():
            weight.copy_(weights[name])
    return copy


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process has a share; any other as it is. All processes must call it."""
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor.detach() if full is None else full().detach()


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, laid out as `like` is; the tensor itself where `like` is whole."""
    if not hasattr(like, "device_mesh") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)
