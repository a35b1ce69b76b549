"""Describes the machine of a measurement."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

MATRIX_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd")
"""Instruction sets that determine the speed of matrix products."""

DECLARED_PEAK = {
    ("H100 PCIe", "bfloat16"): 756e12,
    ("H100 PCIe", "float32"): 51e12,
    ("H100", "bfloat16"): 989e12,
    ("H100", "float32"): 67e12,
    ("H200", "bfloat16"): 989e12,
    ("H200", "float32"): 67e12,
    ("A100", "bfloat16"): 312e12,
    ("A100", "float32"): 19.5e12,
}
"""Dense floating-point operations per second according to the data sheet; float32 without TF32."""


def describe_machine(device: torch.device, *, threads: int, malloc: str) -> dict[str, Any]:
    """Return machine, software and time, as plain data."""
    cpu = _cpuinfo()
    record = {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in MATRIX_FLAGS if flag in cpu.get("flags", cpu.get("Features", "")).split()],
        "cpus": os.cpu_count(),
        "threads": threads,
        "load": load_average(),
        "malloc": malloc,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
    }
    if device.type == "cuda":
        record |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return record


def load_average() -> float | None:
    """Return the number of processes that ran or waited over the last minute; None where it is unknown (Windows)."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def declared_peak(gpu: str, dtype: str) -> float | None:
    """Return the floating-point operations per second in the data sheet; None if unknown."""
    return next((value for (name, kind), value in DECLARED_PEAK.items() if name in gpu and kind == dtype), None)


def commit() -> str | None:
    """Return the commit of this code, with "+" if files differ from it; None outside a repository."""
    folder = Path(__file__).resolve().parent
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory(device: torch.device) -> int:
    """Return peak memory in bytes: on a GPU that of the allocator, else the resident memory of this process.

    On Linux it is read from /proc, because the figure of getrusage is inherited from the parent process.

    Raises:
        ValueError: this system has no such figure (Windows).
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError as error:  # only on Unix
        raise ValueError(
            f"the memory of a process cannot be measured on {platform.system()}; use Linux, macOS or a GPU"
        ) from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: torch.device) -> bool:
    """Reset `peak_memory` to the current memory; return whether the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo; empty if it does not exist."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
