"""Time and memory of functions, as fairly as one machine allows."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds over repeats: the median, and how far the middle half of them spreads."""

    median: float
    spread: float


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, Timing]:
    """Time every function ``repeats`` times, in turn, so that what slows the machine down slows all of them.

    Each runs twice before: compiling and first touches do not count. On CUDA the device's own events are read.
    """
    for function in functions.values():
        for _ in range(2):
            function()
    gc.collect()
    clock = _event_seconds if device == "cuda" else _wall_seconds
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            seconds[name].append(clock(function))
    return {name: timing(taken) for name, taken in seconds.items()}


def _wall_seconds(function: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _event_seconds(function: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def timing(seconds: list[float]) -> Timing:
    """Median and interquartile range."""
    if len(seconds) < 2:
        return Timing(seconds[0], 0.0)
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(statistics.median(seconds), high - low)


def peak_mebibytes(function: Callable[[], object], device: str) -> float:
    """How much memory one call adds at its highest point to what was there before, MiB; it has run before.

    On CUDA what PyTorch's allocator hands out; on a CPU resident memory (Linux), nan where the system does not tell.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    except OSError:
        return float("nan")
    before_kib = resident_kib("VmRSS")
    function()
    return (resident_kib("VmHWM") - before_kib) / 1024


def resident_kib(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def available_bytes(device: str) -> int:
    """Memory that is free to use; on CUDA also what PyTorch's allocator holds and nobody uses."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**63


def device_name(device: str) -> str:
    """The processor or GPU in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {torch.get_num_threads()} threads"
    return f"CPU, {torch.get_num_threads()} threads"
