"""Measures a case: memory first, then rounds of the case, its plain path and the floor's matrix product in turn.

The floor of a case is the time of a large matrix product with the same number type and as many multiply-adds as the
method without shortcuts (`san.benchmark.reference`) spends in matrix products and convolutions. It does not depend on
the implementation. The product runs in every round, so that disturbances affect both. Products in the other number
types run too; they give the floors of the case in these types.
"""

from __future__ import annotations

import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from san.benchmark.against import make_workload as make_workload_against
from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder, clock_of, counting
from san.benchmark.machine import declared_peak, describe_machine, peak_memory
from san.benchmark.report import network_total
from san.benchmark.workload import MODULES, Workload, make_workload
from san.io.errors import one_line

Parts = dict[str, float]

PRODUCTS = ("float32", "bfloat16", "int8")
"""Number types of the products that are timed for floors."""

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
        against: path of the adapter of another implementation, see `san.benchmark.against`; "" for none.

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
    against: str = ""

    def __post_init__(self) -> None:
        """Raise for unknown words and for numbers that are too small."""
        if self.runs < 1 or self.warmup < 1 or self.threads < 1 or (self.product_size or 1) < 1:
            raise ValueError(f"runs, warmup, threads and product_size must be 1 or more; got {self}")
        if self.malloc not in ("keep", "system"):
            raise ValueError(f"unknown allocator settings {self.malloc!r}; choose keep or system")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)


def measure(case: Case, settings: Settings) -> dict[str, Any]:
    """Measure a case in its own process; return all figures as plain data.

    Returns:
        `case`, `machine`, `items` and `item` per run, `fast` and, if requested, `plain` and `against` (see `_summary`;
        with `sampled_items` if a run processes only this number of items and its times are extrapolated), `product`
        (seconds and operations per second of the floor's product), `floors` (by number type; CPU seconds on a CPU, else
        seconds), `multiply_adds` of the method, and on a GPU `host_synchronisations` of a run. If another
        implementation cannot be set up, `against_error` has the reason.
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
    if settings.against and case.task != "loading":
        try:
            other = make_workload_against(case, device, Path(settings.against))
            if other is not None:
                for _ in range(settings.warmup):
                    _once(other, device)
                workloads["against"] = other
        except Exception as error:  # the adapter may raise any error; the case itself is still measured
            record["against_error"] = f"{type(error).__name__}: {one_line(error, limit=300)}"
    products = {} if case.task == "loading" else _products(settings, device)
    parts: dict[str, list[Parts]] = {path: [] for path in workloads}
    cpu: dict[str, list[float]] = {path: [] for path in workloads}
    seconds: dict[str, list[float]] = {dtype: [] for dtype in products}
    product_cpu: dict[str, list[float]] = {dtype: [] for dtype in products}
    for _ in range(settings.runs):
        for path, workload in workloads.items():
            start = time.process_time()
            parts[path].append(_once(workload, device))
            cpu[path].append((time.process_time() - start) * workload.scale)
        for dtype, product in products.items():
            start = time.process_time()
            seconds[dtype].append(product())
            product_cpu[dtype].append(time.process_time() - start)
    if products:
        record |= _floor(case, settings, device, seconds)
        network = network_total(record["multiply_adds"]) / _product_size(settings, device) ** 3
        lasted = product_cpu if device.type == "cpu" else seconds
        record["floors"] = {dtype: network * statistics.median(each) for dtype, each in lasted.items()}
    for path, rounds in parts.items():
        own, size = seconds.get(case.dtype, []), _product_size(settings, device)
        record[path] = _summary(rounds, own, record.get("multiply_adds"), size)
        record[path]["cpu_seconds"] = statistics.median(cpu[path])
        if products and device.type == "cpu":
            pairs = zip(cpu[path], product_cpu[case.dtype], strict=True)
            record[path]["cpu_times_floor"] = statistics.median(whole / (network * one) for whole, one in pairs)
        if workloads[path].sampled:
            record[path]["sampled_items"] = workloads[path].sampled
    record["fast"]["peak_bytes"] = peak
    return record


def measure_memory(case: Case, settings: Settings, *, path: str) -> int:
    """Return the peak memory of a path ("fast", "plain" or "against") in bytes, in its own process."""
    device = torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    if path == "against":
        workload = make_workload_against(case, device, Path(settings.against))
        assert workload is not None, "a case without a time has no workload"
    else:
        workload = make_workload(case, device, plain=path == "plain")
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


def _products(settings: Settings, device: torch.device) -> dict[str, Callable[[], float]]:
    """Return, by number type, a function that multiplies two large matrices and returns the seconds.

    int8 is omitted where this PyTorch cannot multiply such matrices on the device.
    """
    size, found = _product_size(settings, device), {}
    for dtype in PRODUCTS:
        product = _product(dtype, size, device)
        try:
            product()
        except (RuntimeError, NotImplementedError):
            if dtype != "int8":
                raise
        else:
            found[dtype] = product
    return found


def _product(dtype: str, size: int, device: torch.device) -> Callable[[], float]:
    """Return a function that multiplies two matrices of a number type; int8 to int32, as torch's int8 layers do."""
    a, b = ((20 * torch.randn(size, size, device=device)).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty(size, size, dtype=torch.int32 if dtype == "int8" else a.dtype, device=device)
    multiply: Callable[..., Any] = torch._int_mm if dtype == "int8" else torch.mm

    def run(recorder: Recorder) -> None:
        multiply(a, b, out=out)
        recorder.mark("product")

    workload = Workload(run, 1, "products")
    return lambda: _once(workload, device)["product"]


def _floor(
    case: Case, settings: Settings, device: torch.device, seconds: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Add the figures of the floor, and the rates of all number types, to a record."""
    size = _product_size(settings, device)
    medians = {dtype: statistics.median(each) for dtype, each in seconds.items()}
    rates = {dtype: 2 * size**3 / each for dtype, each in medians.items()}
    rate, multiply_adds = rates[case.dtype], count(case, plain=True)
    record: dict[str, Any] = {
        "product": {"size": size, "seconds": medians[case.dtype], "operations_per_second": rate, "rates": rates},
        "multiply_adds": multiply_adds,
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
