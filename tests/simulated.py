"""GPUs that do not exist: tensors that say they are on `cuda:N` or `mps:0` and hold their numbers in ordinary memory.

What it holds code to, as the real devices do:

- Tensors of different devices do not mix. Only a scalar of the host may stand beside a GPU's tensors.
- `cuda` without an index is the current device of the thread that asks. Each new thread begins at device 0.
- `mps` has no float64.
- The host reads a device's tensor by `cpu`, `item` or `tolist` only; each such wait is counted in `Machine.waits`.
- With deterministic algorithms on, what CUDA has no deterministic kernel for is refused (`cumsum`).

The tensors of C++ are CPU tensors, so that autograd and the optimizers need no GPU code. The device is Python's: a
property of the subclass, which every operation's result inherits. Attention is the formula, by `math`; every call's
shapes are noted in `Machine.attention`, since GPU libraries make a plan for each new shape.

What it cannot show: kernels, streams, memory, speed, nccl. Triton's kernels are tested in their interpreter.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

Kind = Literal["cuda", "mps"]
aten = torch.ops.aten
MAY_CROSS = {"_to_copy", "copy_", "index", "index_put_", "index_put", "_index_put_impl_", "set_"}  # host and device
NOT_DETERMINISTIC = {"cumsum"}  # on CUDA, for floating numbers


MOVING = threading.local()  # `asked` while Python, and not a formula of autograd's, moves a tensor


class DeviceMistake(RuntimeError):
    """What a real device refuses."""


@dataclass
class Machine:
    """What the simulated machine saw."""

    kind: Kind
    gpus: int
    waits: list[str] = field(default_factory=list)  # operations that made the host wait
    attention: list[tuple[tuple[int, ...], tuple[int, ...], bool]] = field(default_factory=list)  # q, k, with a mask
    cudnn: list[bool] = field(default_factory=list)  # whether cuDNN might have computed it, call by call
    contexts: dict[str, set[int]] = field(default_factory=dict)  # thread names: devices that they allocated on
    here: threading.local = field(default_factory=threading.local)

    @property
    def current(self) -> int:
        """The calling thread's current device."""
        return getattr(self.here, "index", 0)

    def resolved(self, device: Any) -> torch.device:
        """`device` with its index."""
        device = torch.device(device)
        if device.type == "cpu" or device.index is not None:
            return device
        return torch.device(device.type, self.current if device.type == "cuda" else 0)


MACHINE: Machine | None = None


class OnDevice(torch.Tensor):
    """A tensor of a simulated device; `held` holds its numbers."""

    held: torch.Tensor
    place: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: torch.Tensor, place: torch.device) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype
        )
        made.held, made.place = real, place
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.place.type == "cuda"

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.place}, {tuple(self.shape)}, {self.dtype})"

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        copied = kwargs.pop("copy", False)
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        place = self.place if device is None else machine().resolved(device)
        if place == self.place and dtype in (None, self.dtype) and not copied:
            return self
        MOVING.asked = True
        try:
            return aten._to_copy(self, dtype=dtype, device=place, non_blocking=non_blocking)
        finally:
            MOVING.asked = False

    def cpu(self, *_: Any) -> torch.Tensor:  # type: ignore[override]
        return self.to("cpu")

    def cuda(self, device: Any = "cuda", *_: Any) -> torch.Tensor:  # type: ignore[override]
        return self.to(device)

    def pin_memory(self, *_: Any) -> torch.Tensor:  # type: ignore[override]
        raise DeviceMistake(f"cannot pin a tensor of {self.place}")

    def numpy(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        raise TypeError(f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() first")

    def tolist(self) -> Any:
        machine().waits.append("tolist")
        return self.held.tolist()


class _Everywhere(TorchDispatchMode):
    """So that what is made on a device (`torch.zeros(device=...)`) is seen, too."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def machine() -> Machine:
    """The one that is being simulated."""
    assert MACHINE is not None
    return MACHINE


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: checked as its device would, computed on the host, its results on the device."""
    name = _name(function)
    ours: list[OnDevice] = []
    plain: list[torch.Tensor] = []
    real = tuple([_real(x, ours, plain) for x in args])
    real_kwargs = {key: _real(x, ours, plain) for key, x in kwargs.items()} if kwargs else {}
    place = ours[0].place if ours else None
    if any(x.place != place for x in ours):
        places = sorted({str(x.place) for x in ours})
        raise DeviceMistake(f"{name}: expected all tensors to be on the same device, found {places}")
    if ours and name not in MAY_CROSS and any(x.dim() for x in plain):
        raise DeviceMistake(f"{name}: a tensor of the host beside one of {place}")
    if kwargs.get("device") is not None:
        wanted = machine().resolved(kwargs["device"])
        if wanted.type != "cpu":
            place = wanted
        elif getattr(MOVING, "asked", False):  # else it is C++ that asks for the device that it sees
            place = None
        real_kwargs["device"] = torch.device("cpu")
        real_kwargs.pop("pin_memory", None)
    if name == "copy_" and not isinstance(args[0], OnDevice):
        place = None
    _note(name, ours, place)
    on_cuda = place is not None and place.type == "cuda"
    if on_cuda and name in NOT_DETERMINISTIC and torch.are_deterministic_algorithms_enabled():
        raise DeviceMistake(f"{name} does not have a deterministic implementation on cuda")
    result = function(*real, **real_kwargs)
    if isinstance(result, (list, tuple)):
        return type(result)([_placed(x, place, ours, name) for x in result])
    return _placed(result, place, ours, name)


@cache
def _name(function: Any) -> str:
    return function._schema.name.split("::")[-1]


def _note(name: str, ours: list[OnDevice], place: torch.device | None) -> None:
    here = machine()
    if place is None and not ours:
        return
    if ours and (name in ("_local_scalar_dense", "nonzero") or (place is None and name in ("_to_copy", "copy_"))):
        here.waits.append(name)
    if place is not None and place.type == "cuda":
        here.contexts.setdefault(threading.current_thread().name, set()).add(here.current)


def _real(x: Any, ours: list[OnDevice], plain: list[torch.Tensor]) -> Any:
    """The host's part of an argument; its tensors are noted."""
    if type(x) is OnDevice:
        ours.append(x)
        return x.held
    if isinstance(x, torch.Tensor):
        plain.append(x)
    elif isinstance(x, (list, tuple)) and x and not isinstance(x[0], (int, float)):
        return [_real(each, ours, plain) for each in x]
    return x


def _placed(x: Any, place: torch.device | None, ours: list[OnDevice], name: str) -> Any:
    if not isinstance(x, torch.Tensor) or isinstance(x, OnDevice) or place is None:
        return x
    for known in ours:  # changed in place
        if x is known.held:
            return known
    if place.type == "mps" and x.dtype in (torch.float64, torch.complex128):
        raise TypeError(
            f"Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it ({name})"
        )
    return OnDevice(x, place)


def _move(module: torch.nn.Module, device: Any) -> torch.nn.Module:
    """`Module.to`: each weight once, tied ones together."""
    moved: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is None:
                continue
            if id(weight) not in moved:
                with torch.no_grad():
                    there = weight.detach().to(device)
                    kept = weight if there.device == weight.device else torch.nn.Parameter(there, weight.requires_grad)
                moved[id(weight)] = moved[id(kept)] = kept
            part._parameters[name] = moved[id(weight)]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
    return module


def _attention(q: Any, k: Any, v: Any, attn_mask: Any = None, is_causal: bool = False, enable_gqa: bool = False) -> Any:
    """`scaled_dot_product_attention` by its formula, noted."""
    here = machine()
    here.attention.append((tuple(q.shape), tuple(k.shape), attn_mask is not None))
    here.cudnn.append(torch.backends.cuda.cudnn_sdp_enabled())
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-2, -1)).float() / q.shape[-1] ** 0.5
    if is_causal:
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    if attn_mask is not None:
        hidden = attn_mask.logical_not() if attn_mask.dtype == torch.bool else None
        scores = scores + attn_mask if hidden is None else scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def _grouped(original: Callable[..., Any]) -> Callable[..., Any]:
    """C++ groups an optimizer's tensors by the device that it sees; here by Python's."""

    def grouped(lists: Any, *args: Any, **kwargs: Any) -> Any:
        return {(found[0][0][0].device, dtype): found for (_, dtype), found in original(lists, *args, **kwargs).items()}

    return grouped


@contextmanager
def simulate(kind: Kind, gpus: int = 4) -> Iterator[Machine]:
    """Within, this process has `gpus` GPUs of NVIDIA's, or one of Apple's."""
    global MACHINE
    here = MACHINE = Machine(kind, gpus if kind == "cuda" else 1)
    with pytest.MonkeyPatch.context() as patch, _flags_kept():
        _patch(patch, here)
        try:
            with _Everywhere():
                yield here
        finally:
            MACHINE = None


def _patch(patch: pytest.MonkeyPatch, here: Machine) -> None:
    cuda = here.kind == "cuda"
    names = {
        "is_available": lambda: cuda,
        "device_count": lambda: here.gpus if cuda else 0,
        "current_device": lambda: here.current,
        "set_device": lambda device: setattr(here.here, "index", _index(device)),
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_name": lambda device=None: "simulated GPU",
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device: SimpleNamespace(uuid=f"GPU-{_index(device)}", name="simulated GPU"),
        "max_memory_allocated": lambda device=None: 0,
        "synchronize": lambda device=None: None,
        "manual_seed_all": lambda seed: None,
        "_lazy_init": lambda: None,
    }
    for name, value in names.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.backends.mps, "is_available", lambda: not cuda)
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)
    patch.setattr(torch.nn.Module, "to", _move)
    patch.setattr(torch.nn.Module, "cpu", lambda module: _move(module, "cpu"))
    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", _attention)
    patch.setattr(threading.Thread, "run", _seeing(threading.Thread.run))
    for place in (_foreach_utils, torch.nn.utils.clip_grad):
        grouped = _grouped(_foreach_utils._group_tensors_by_device_and_dtype)
        patch.setattr(place, "_group_tensors_by_device_and_dtype", grouped)
    grouping = torch.optim.Optimizer._group_tensors_by_device_and_dtype
    patch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_grouped(grouping)))
    tensor, to = torch.tensor, torch.Tensor.to
    patch.setattr(torch.Tensor, "to", lambda x, *args, **kwargs: to(x, *_with_index(args), **_with_index(kwargs)))
    patch.setattr(torch, "tensor", lambda *args, device="cpu", **kwargs: tensor(*args, **kwargs).to(device))
    _patch_autocast(patch)


def _patch_autocast(patch: pytest.MonkeyPatch) -> None:
    """C++ sees CPU tensors, so what is asked of a GPU's autocast is asked of the CPU's."""
    autocast, enabled, dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype

    def on_host(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu", *args, **kwargs)

    patch.setattr(torch, "autocast", on_host)
    patch.setattr(torch, "is_autocast_enabled", lambda device_type="cpu": enabled("cpu"))
    patch.setattr(torch, "get_autocast_dtype", lambda device_type="cpu": dtype("cpu"))


def _seeing(run_thread: Callable[..., None]) -> Callable[..., None]:
    """Dispatch modes are a thread's own: a new thread begins with ours."""

    def started(thread: threading.Thread) -> None:
        with _Everywhere():
            run_thread(thread)

    return started


def _with_index(given: Any) -> Any:
    """Arguments of `Tensor.to` whose device has an index: C++ would ask the driver for it."""

    def one(value: Any) -> Any:
        named = isinstance(value, torch.device) or (isinstance(value, str) and value != "cpu")
        return machine().resolved(value) if named else value

    return {key: one(value) for key, value in given.items()} if isinstance(given, dict) else tuple(map(one, given))


def _index(device: Any) -> int:
    return device if isinstance(device, int) else machine().resolved(device).index


@contextmanager
def _flags_kept() -> Iterator[None]:
    """What code may set for the whole process is put back."""
    deterministic, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    precision, filling = torch.get_float32_matmul_precision(), torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags
        torch.set_float32_matmul_precision(precision)
        torch.utils.deterministic.fill_uninitialized_memory = filling
