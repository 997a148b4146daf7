"""What a stage asks of the machine: CPU, memory, disk, network and GPU, by MLflow's own monitors, as `system/…`.

MLflow draws metrics of these names on a page of their own. Its logger asks the store at every sample whether the run
still goes on; this one only fills a list, which is delivered with the stage's own metrics, so that a store that is down
costs nothing more. Beside MLflow's, which are the whole machine's, stand those of the stage and its child processes.

The x-axis is seconds since the start. MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false turns it off;
MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is the time between samples in seconds. GPUs need the package nvidia-ml-py
(`pip install -e '.[gpu]'`). Where there is an NVIDIA GPU and not the package, a line says so.
"""

import contextlib
import os
import sys
import threading
import time
from importlib.util import find_spec
from typing import Any

import psutil

from llm.nvidia import nvidia_gpus
from stages.mailbox import Event, now

INTERVAL = 10.0  # seconds


class Sampler:
    """Samples the machine, and the process `pid`, in the background from its making on."""

    def __init__(self, pid: int) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._stage: psutil.Process | None = None
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in ("false", "0"):
            return
        with contextlib.suppress(psutil.Error):
            self._stage = psutil.Process(pid)
            interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or INTERVAL)
            self._monitors = _monitors()
            self._cpu_seconds = self._used()
            self._sampled = self._started
            threading.Thread(target=self._run, args=(interval,), daemon=True).start()

    def taken(self, last: bool = False) -> list[Event]:
        """The samples since this was last asked; `last` takes one more, and no other after it."""
        if last:
            self._stop.set()
            self._sample()
        with self._lock:
            events, self._events = self._events, []
        return events

    def _run(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self._sample()

    def _sample(self) -> None:
        if self._stage is None or time.monotonic() - self._sampled < 0.5:  # too short for a share of the processor
            return
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        with contextlib.suppress(psutil.Error):
            used, moment = self._used(), time.monotonic()
            values["stage_cpu_percentage"] = 100 * max(0.0, used - self._cpu_seconds) / (moment - self._sampled)
            values["stage_memory_megabytes"] = sum(process.memory_info().rss for process in self._family()) / 1e6
            self._cpu_seconds = used
        self._sampled = time.monotonic()
        step = round(self._sampled - self._started)
        named = {f"system/{name}": round(value, 1) for name, value in values.items()}
        with self._lock:
            self._events.append({"kind": "metrics", "time": now(), "step": step, "values": named})

    def _used(self) -> float:
        """Seconds of processor time of the stage and of its children that are alive."""
        times = [process.cpu_times() for process in self._family()]
        return sum(each.user + each.system for each in times)

    def _family(self) -> list[psutil.Process]:
        """The stage and its children, this process, which delivers, left out."""
        assert self._stage
        found = [self._stage, *self._stage.children(recursive=True)]
        return [process for process in found if process.pid != os.getpid()]


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    import stages.tracking_uri  # noqa: F401, turns telemetry off

    psutil.cpu_percent()  # its first answer is always 0
    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    if missing := missing_package():
        print(missing, file=sys.stderr, flush=True)
    with contextlib.suppress(ImportError, RuntimeError):  # no package, or no GPU
        monitors.append(GPUMonitor())
    return monitors


def missing_package() -> str:
    """What to do for metrics of a GPU that is here, if its package is not; else nothing."""
    if find_spec("pynvml") or not nvidia_gpus():
        return ""
    return "no metrics of the GPU: the package nvidia-ml-py is missing; pip install -e '.[gpu]'"
