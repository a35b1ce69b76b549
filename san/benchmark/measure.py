"""Measures a case: memory first, then rounds of the case, its plain path and the floor's matrix product in turn.

The floor of a case is the time of a large matrix product with the same number type and as many multiply-adds as the
method without shortcuts (`san.benchmark.reference`) spends in matrix products and convolutions. It does not depend on
the implementation. The product runs in every round, so that disturbances affect both.
"""

from __future__ import annotations

import importlib
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder, clock_of, counting
from san.benchmark.machine import declared_peak, describe_machine, peak_memory
from san.benchmark.report import network_total
from san.benchmark.workload import MODULES, Workload, make_workload

Parts = dict[str, float]

_SYNCHRONISED = (
    "called a synchronizing CUDA operation"  # torch's first such warning in a process is about the mode itself
)


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        runs: number of timed rounds.
        warmup: number of runs before them.
        threads: number of threads of torch.
        device: "cpu" or "cuda".
        malloc: "keep" for the settings of san.allocator, "system" for none.
        plain: also time the plain path.
        product_size: rows and columns of the floor's matrices; None for 3072 on a CPU and 8192 on a GPU.

    Raises:
        ValueError: a number is too small, or a word is unknown.
    """

    runs: int = 5
    warmup: int = 1
    threads: int = 2
    device: str = "cpu"
    malloc: str = "keep"
    plain: bool = False
    product_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse unknown words and numbers that are too small."""
        if self.runs < 1 or self.warmup < 1 or self.threads < 1 or (self.product_size or 1) < 1:
            raise ValueError(f"runs, warmup, threads and product_size must be 1 or more; got {self}")
        if self.malloc not in ("keep", "system"):
            raise ValueError(f"unknown allocator settings {self.malloc!r}; choose keep or system")

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def measure(case: Case, settings: Settings) -> dict[str, Any]:
    """Measure a case in its own process; return all figures as plain data.

    Returns:
        `case`, `machine`, `items` and `item` per run, `fast` and, if asked for, `plain` (see `_summary`; with
        `sampled_items` where a run does only so many of the items and its times are extrapolated), `product`
        (seconds and operations per second of the floor's), `multiply_adds` of the method, and on a GPU
        `host_synchronisations` of a run.
    """
    device = torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    fast = make_workload(case, device, plain=False)
    for _ in range(settings.warmup + 1):
        _once(fast, device)
    peak = peak_memory(device)  # before anything else allocates
    record: dict[str, Any] = {
        "case": case.to_dict(),
        "machine": describe_machine(device, threads=torch.get_num_threads(), malloc=settings.malloc),
        "items": fast.items,
        "item": fast.item,
    }
    if device.type == "cuda":
        record["host_synchronisations"] = host_synchronisations(fast, device)
    workloads = {"fast": fast}
    if settings.plain and case.task != "loading":
        workloads["plain"] = make_workload(case, device, plain=True)
        for _ in range(settings.warmup):
            _once(workloads["plain"], device)
    multiplies = case.task != "loading"
    product = _product(case, settings, device) if multiplies else None
    parts: dict[str, list[Parts]] = {path: [] for path in workloads}
    seconds: list[float] = []
    for _ in range(settings.runs):
        for path, workload in workloads.items():
            parts[path].append(_once(workload, device))
        if product:
            seconds.append(product())
    record |= _floor(case, settings, device, seconds) if multiplies else {}
    for path, rounds in parts.items():
        record[path] = _summary(rounds, seconds, record.get("multiply_adds"), _product_size(settings, device))
        if workloads[path].sampled:
            record[path]["sampled_items"] = workloads[path].sampled
    record["fast"]["peak_bytes"] = peak
    return record


def measure_memory(case: Case, settings: Settings, *, plain: bool) -> int:
    """Return the peak memory of one path in bytes, in its own process."""
    device = torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    workload = make_workload(case, device, plain=plain)
    for _ in range(settings.warmup + 1):
        _once(workload, device)
    return peak_memory(device)


def count(case: Case, *, plain: bool) -> Parts:
    """Count the multiply-adds of a case's parts without computing; empty for loading."""
    if case.task == "loading":
        return {}
    with counting() as recorder_of:
        recorder = recorder_of()
        importlib.import_module(MODULES[case.task]).count_run(case, recorder, plain=plain)
        return recorder.parts()


def host_synchronisations(workload: Workload, device: torch.device) -> int:
    """Count how often the host waits for the GPU in a run, from torch's warnings."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            workload.run(Recorder(clock_of(device)))
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum(_SYNCHRONISED in str(warning.message) for warning in caught)


def _once(workload: Workload, device: torch.device) -> Parts:
    """Return the seconds of all parts, extrapolated if a run computes a sample."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    recorder = Recorder(clock_of(device))
    workload.run(recorder)
    return {name: seconds * workload.scale for name, seconds in recorder.parts().items()}


def _product_size(settings: Settings, device: torch.device) -> int:
    return settings.product_size or (8192 if device.type == "cuda" else 3072)


def _product(case: Case, settings: Settings, device: torch.device) -> Callable[[], float]:
    """Return a function that multiplies two large matrices and returns the seconds."""
    size = _product_size(settings, device)
    multiply = torch._int_mm if case.dtype == "int8" else torch.mm
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, case.dtype)) for _ in range(2))
    out = multiply(a, b)

    def run(recorder: Recorder) -> None:
        multiply(a, b, out=out)
        recorder.mark("product")

    workload = Workload(run, 1, "products")
    _once(workload, device)
    return lambda: _once(workload, device)["product"]


def _floor(case: Case, settings: Settings, device: torch.device, seconds: Sequence[float]) -> dict[str, Any]:
    """Add the figures of the floor to a record."""
    size = _product_size(settings, device)
    rate = 2 * size**3 / statistics.median(seconds)
    record: dict[str, Any] = {
        "product": {"size": size, "seconds": statistics.median(seconds), "operations_per_second": rate},
        "multiply_adds": count(case, plain=True),
        "own_multiply_adds": count(case, plain=False),
    }
    if device.type == "cuda" and (declared := declared_peak(torch.cuda.get_device_name(device), case.dtype)):
        record["product"] |= {"declared_operations_per_second": declared, "share_of_declared": rate / declared}
    return record


def _summary(
    rounds: Sequence[Parts], seconds: Sequence[float], multiply_adds: Parts | None, size: int
) -> dict[str, Any]:
    """Return median and spread of the total and of the parts.

    Returns:
        `seconds`, `spread` (half the distance between the quartiles), `all_seconds`, `parts` (name to seconds), and
        against the floor `floor_seconds`, `times_floor` (the median of each round's ratio), `part_floors`.
    """
    wholes = [sum(parts.values()) for parts in rounds]
    result: dict[str, Any] = {
        "seconds": statistics.median(wholes),
        "spread": _spread(wholes),
        "all_seconds": wholes,
        "parts": {name: statistics.median(parts[name] for parts in rounds) for name in rounds[0]},
    }
    if multiply_adds is not None:
        network = network_total(multiply_adds)
        floors = [network * product / size**3 for product in seconds]
        result |= {
            "floor_seconds": statistics.median(floors),
            "times_floor": statistics.median(whole / floor for whole, floor in zip(wholes, floors, strict=True)),
            "part_floors": {
                name: value * statistics.median(seconds) / size**3 for name, value in multiply_adds.items()
            },
        }
    return result


def _spread(values: Sequence[float]) -> float:
    """Return half the distance between the quartiles; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return (upper - lower) / 2
