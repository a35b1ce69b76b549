"""The check of a device that a user names, and what this machine's CPU can do."""

from __future__ import annotations

import platform
from collections.abc import Collection

import torch


def checked_device(
    device: str | torch.device, name: str = "device", *, types: Collection[str] | None = None
) -> torch.device:
    """The device, if PyTorch sees it on this machine.

    Args:
        device: "cpu", "cuda", "cuda:N", "mps" or another that PyTorch knows.
        name: what messages call it: an argument, an option or a configuration key.
        types: the types that are accepted, such as ("cpu", "cuda"); None accepts all that PyTorch knows.

    Raises:
        ValueError: there is no such device, or it is of another type.
    """
    seen = f"{name} is {str(device)!r}"
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or (types is not None and found.type not in types):
        raise ValueError(f"{seen}; set it to cpu, cuda{', cuda:N or mps' if types is None else ' or cuda:N'}")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"{seen} but PyTorch {torch.__version__} sees no GPU; set it to cpu, or install a driver and a build "
                "of PyTorch for the GPU"
            )
        count = torch.cuda.device_count()
        if found.index is not None and found.index >= count:
            raise ValueError(f"{seen} but PyTorch sees {count} GPUs; set it to cuda:{count - 1} or less")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{seen} but this machine has no Metal GPU; set it to cpu")
    return found


def cpu_supports(instructions: str) -> bool:
    """Whether this CPU has instructions that PyTorch uses: "avx512_bf16", "vnni", "amx_tile", ..."""
    ask = getattr(torch.cpu, f"_is_{instructions}_supported", None)  # private; an older PyTorch may lack one
    return ask is not None and bool(ask())


def computes_bfloat16(device: torch.device) -> bool:
    """False where PyTorch computes bfloat16 several times slower than float32: on an x86 CPU without AVX512-BF16."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type != "cpu" or not x86 or cpu_supports("avx512_bf16")
