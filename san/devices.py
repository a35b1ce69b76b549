"""Checks a device name, queries CPU features, and computes several images in parallel on a CPU."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_STREAMS = 8
"""Maximum number of images computed at once on a CPU; each needs memory for its activations."""

_KNOWN = ("san", "torch")  # packages with stateless modules


def checked_device(
    device: str | torch.device, name: str = "device", *, types: Collection[str] | None = None
) -> torch.device:
    """Return the device if it is available on this machine.

    Args:
        device: "cpu", "cuda", "cuda:N", "mps" or another device of PyTorch.
        name: name of the argument, option or configuration key, for messages.
        types: accepted device types, such as ("cpu", "cuda"); None accepts all of PyTorch's.

    Raises:
        ValueError: the device does not exist, or is of another type.
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
    ask = getattr(torch.cpu, f"_is_{instructions}_supported", None)  # private; missing in older versions
    return ask is not None and bool(ask())


def computes_bfloat16(device: torch.device) -> bool:
    """Return False on an x86 CPU without AVX512-BF16, where bfloat16 is several times slower than float32."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type != "cpu" or not x86 or cpu_supports("avx512_bf16")


def multiplies_int8(device: torch.device) -> bool:
    """Whether PyTorch multiplies int8 matrices fast: on CUDA, and on a CPU with AVX512-VNNI.

    Elsewhere its kernel takes 25 times as long as a product in float32.
    """
    return device.type == "cuda" or (device.type == "cpu" and cpu_supports("vnni"))


def image_streams(models: Iterable[nn.Module]) -> int:
    """Return how many images to compute at once: on a CPU one per thread of torch, at most `MOST_STREAMS`; else 1.

    It is also 1 for a compiled model, which is compiled for a fixed number of threads, and for a model with modules of
    another package, which may not be thread-safe.
    """
    modules = [each for model in models for each in model.modules()]
    devices = {tensor.device.type for each in modules for tensor in each.parameters(recurse=False)}
    foreign = any(type(each).__module__.split(".")[0] not in _KNOWN for each in modules)
    if devices != {"cpu"} or foreign or any(each._compiled_call_impl is not None for each in modules):
        return 1
    threads = torch.get_num_threads()
    return threads // -(-threads // MOST_STREAMS)


def in_streams(
    function: Callable[[Item], Result], items: Iterable[Item], streams: int
) -> Generator[Result, None, None]:
    """Apply a function that runs a network to several items at once; yields the results in order.

    Torch's threads that share an image wait for each other after every operator, and longer if other programs or
    threads use the CPU. Images computed in parallel, each with its share of the threads, do not wait. The first item is
    computed alone with all threads, because it creates shared data such as text embeddings.

    Args:
        function: thread-safe; its threads have PyTorch's default grad mode and autocast.
        items: read in the calling thread, up to twice `streams` ahead.
        streams: number of parallel calls; 1 calls `function` in the calling thread, with torch's threads unchanged.
    """
    left = iter(items)
    for item in left if streams == 1 else islice(left, 1):
        yield function(item)
    if streams == 1:
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(streams, thread_name_prefix="san-network")
    waiting: deque[Future[Result]] = deque()
    torch.set_num_threads(max(1, threads // streams))
    try:
        while True:
            waiting.extend(pool.submit(function, item) for item in islice(left, 2 * streams - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)
