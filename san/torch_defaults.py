"""Runs a block with PyTorch's default settings, independent of the caller's.

A caller may be inside `torch.autocast` or have set another default dtype or device. Loading, text embeddings and
predictions must not depend on that, so their public functions run under `torch_defaults`. It affects only the calling
thread; `torch.set_default_dtype` would affect all threads. `SANModel.forward` does not use it, so training under
autocast works as for any module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # devices of autocast that a model may be on
_FLOATING = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.eye, torch.linspace}
_INFERRED = {torch.tensor, torch.as_tensor, torch.full, torch.arange}  # floating-point if an argument is


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Disable autocast and create tensors as float32 on the CPU by default. Can also be used as a decorator."""
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        made = torch.empty(0)
        if made.device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if made.dtype != torch.float32:
            stack.enter_context(_Float32())
        yield


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast on a device; a no-op on devices without autocast, such as meta."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class _Float32(TorchFunctionMode):
    """Creates tensors of the default dtype as float32."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        options = dict(options or {})
        floating = function in _FLOATING or (function in _INFERRED and _has_float([*arguments, *options.values()]))
        if floating and options.get("dtype") is None:
            options["dtype"] = torch.float32
        return function(*arguments, **options)


def _has_float(values: Iterable[Any]) -> bool:
    return any(type(each) is float or (isinstance(each, (list, tuple)) and _has_float(each)) for each in values)
