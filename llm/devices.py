"""Which device a run computes on, and what some devices lack.

- A device always has an index. CUDA's current device belongs to a thread, so `cuda` alone may mean another GPU in each.
- Apple's GPU (MPS) has no float64: `as_float64` then computes on the host.
- GPU libraries make a plan for each new shape, which costs 42 to 440 ms in cuDNN (pytorch #191576). So lengths and rows
  that change from call to call are rounded up there: `rounded_up`.
- CUDA adds some sums in any order unless it is told not to: `be_deterministic`, `cumulative_sums`.

PYTORCH_ENABLE_MPS_FALLBACK, which lets the CPU take what MPS lacks, is set in `llm/__init__.py`: torch reads it once,
when it is imported.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import deterministic

from llm.compute_config import DeviceName
from llm.errors import WordmillError
from llm.nvidia import nvidia_gpus

LENGTHS = 64  # on a GPU, lengths that change are multiples of this
ROWS = 8  # and so are numbers of rows
CUBLAS_WORKSPACE = ":4096:8"  # with it cuBLAS gives the same bits each time
SCAN_WIDTH = 256  # of a block in `cumulative_sums`


def choose(name: DeviceName, index: int | None = None) -> tuple[torch.device, str]:
    """The device that `name` means here, with its index, and why `auto` took it (empty for other names).

    `index` is a GPU's number; without it, the one that is current in this thread. Raises WordmillError where the device
    cannot be used, and for `auto` where there is an NVIDIA GPU that torch cannot use.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    why = ""
    if name == "auto":
        if not cuda and nvidia_gpus():
            raise WordmillError(
                f"compute.device: auto found an NVIDIA GPU that torch cannot use ({_cuda_problem()}); "
                "install a driver and a torch that fit each other, or set cpu"
            )
        name = "cuda" if cuda else "mps" if mps else "cpu"
        why = {"cuda": "auto: torch found an NVIDIA GPU", "mps": "auto: torch found Apple's GPU"}.get(
            name, "auto: torch found no GPU"
        )
    if name == "cuda" and not cuda:
        raise WordmillError(
            f"compute.device: cuda is not available on this machine ({_cuda_problem()}); use auto or cpu"
        )
    if name == "mps" and not mps:
        raise WordmillError("compute.device: mps is not available on this machine; use auto or cpu")
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device() if index is None else index), why
    return (torch.device("mps", 0) if name == "mps" else torch.device("cpu")), why


def _cuda_problem() -> str:
    """Why torch cannot use CUDA, in torch's words."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch was built without CUDA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return str(error).strip().partition(". ")[0].partition("\n")[0].rstrip(".")
    return "no GPU was found"


def be_deterministic(wanted: bool) -> None:
    """Have CUDA compute the same bits each time, for the rest of the process, or let it choose again.

    To be called before CUDA starts, since cuBLAS reads its variable then.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
        if os.environ["CUBLAS_WORKSPACE_CONFIG"] not in (":4096:8", ":16:8"):
            raise WordmillError(
                f"CUBLAS_WORKSPACE_CONFIG: {os.environ['CUBLAS_WORKSPACE_CONFIG']} does not go with "
                "compute.deterministic: true; unset the variable, or set compute.deterministic: false"
            )
    torch.use_deterministic_algorithms(wanted)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it would write all memory twice
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = False


def as_float64(x: Tensor) -> Tensor:
    """`x` in float64: on its own device, or on the host if the device has no float64."""
    return x.detach().cpu().double() if x.device.type == "mps" else x.double()


def cumulative_sums(x: Tensor) -> Tensor:
    """Sums of x (B, N) over the last dimension up to and including each place.

    CUDA's own kernel may add in another order each time (pytorch #75240). There the sums come from products with a
    triangle of ones, block by block, in float64.
    """
    if x.device.type != "cuda":
        return x.cumsum(dim=-1)
    rows, length = x.shape
    blocks = F.pad(x.double(), (0, -length % SCAN_WIDTH)).view(rows, -1, SCAN_WIDTH)
    triangle = torch.ones(SCAN_WIDTH, SCAN_WIDTH, dtype=torch.float64, device=x.device).triu()
    within = blocks @ triangle
    totals = within[:, :, -1]
    if totals.shape[1] > 1:
        within = within + (cumulative_sums(totals) - totals)[:, :, None]
    return within.view(rows, -1)[:, :length].to(x.dtype).contiguous()


def rounded_up(number: int, multiple: int, device: torch.device, limit: int | None = None) -> int:
    """`number`, or on a GPU the next multiple of `multiple`, but never above `limit`."""
    if device.type == "cpu":
        return number
    above = -(-number // multiple) * multiple
    return above if limit is None else max(number, min(above, limit))


@contextmanager
def memory_for(work: str, advice: str) -> Iterator[None]:
    """Within, a lack of memory is a WordmillError of one line: what was computed, and what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        detail = str(error).strip().partition("\n")[0].partition(". ")[0] or "memory ran out"
        raise WordmillError(f"out of memory in {work} ({detail}); {advice}") from None


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory", "Invalid buffer size")  # CPU and MPS
    return any(word in str(error) for word in words)
