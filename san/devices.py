"""The check of a device that a user names, what this machine's CPU can do, and how images share it."""

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
"""Images that go through a network at once on a CPU, at most; each takes the memory of its activations."""

_KNOWN = ("san", "torch")  # packages whose modules keep nothing of an image in themselves


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


def image_streams(models: Iterable[nn.Module]) -> int:
    """How many images are best computed at once: on a CPU one per thread of torch, at most `MOST_STREAMS`; else 1.

    1 also where a model is compiled, for the number of threads there was, or has modules of another package, which may
    not be made for several threads.
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
    """Applies a function that runs a network to items, several at once; yields the results in order.

    Threads of torch that share an image wait for each other after every operator, and longer where other programs or
    threads use the CPU too. Images side by side, each with its share of the threads, do not. The first item is
    computed alone with all threads: it makes what the others use, such as text embeddings.

    Args:
        function: may be called from several threads; grad mode and autocast there are PyTorch's defaults.
        items: taken where this is called, as far as twice `streams` ahead.
        streams: calls at once; with 1 they are made where this is called, and torch's threads stay as they are.
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
