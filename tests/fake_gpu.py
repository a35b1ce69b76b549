"""A GPU that knows shapes, types and devices only: finds tensors on the wrong device, and where the host would wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class FakeGPU(FakeTensorMode):
    """While it is entered, tensors on "cuda" have no values; those on the CPU are as ever.

    What is read from the GPU is 0. There is no backward pass, as autograd asks for real streams.

    Attributes:
        waits: what the host would have waited for since it was made, or cleared.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.waits: list[str] = []
        self.counted = 0

    def event(self) -> FakeEvent:
        """Replaces `torch.cuda.Event`."""
        return FakeEvent(self)

    def wait(self, what: str) -> None:
        """Notes a wait."""
        self.waits.append(what)
        self.counted += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled() and func.namespace == "aten":  # where composite operations come whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        kwargs.pop("pin_memory", None)
        target = kwargs.get("device")
        kind = None if target is None else torch.device(target).type
        if kind != "cuda" and not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        source = args[0] if args else None
        if func is aten._local_scalar_dense.default:
            self.wait("a number is read")
            return source.dtype.is_floating_point and 0.0
        if func is aten.empty_like.default and kind == "cpu":
            return _on_cpu(source, kwargs.get("dtype"))
        if func is aten._to_copy.default:
            blocking = not kwargs.get("non_blocking", False)
            if kind == "cpu" and isinstance(source, FakeTensor):
                if blocking:
                    self.wait("copied to the CPU")
                return _on_cpu(source, kwargs.get("dtype"))
            if blocking and not isinstance(source, FakeTensor):
                self.wait("copied to the GPU")
        if func is aten.copy_.default and isinstance(source, FakeTensor) != isinstance(args[1], FakeTensor):
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if blocking:
                self.wait("copied in place")
            if isinstance(args[1], FakeTensor):
                return source.zero_()
        return super().__torch_dispatch__(func, types, args, kwargs)


class FakeEvent:
    """Has come to pass once the host has waited for anything after it was recorded."""

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu = gpu

    def record(self, stream: Any = None) -> None:
        self.at = self.gpu.counted

    def synchronize(self) -> None:
        if self.gpu.counted == self.at:
            self.gpu.wait("an event")


def _on_cpu(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Zeros of a tensor's shape, for what cannot be known."""
    return torch.zeros(tensor.shape, dtype=dtype or tensor.dtype)
