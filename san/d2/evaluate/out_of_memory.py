"""Predictions when the GPU runs out of memory: in smaller chunks, then on the CPU."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

from san.d2.data.batches import Sample

logger = logging.getLogger("san.d2.memory")

SMALLER = 16
"""Factor by which the chunks of the post-processing shrink."""


class OutOfMemoryFallback:
    """Predicts as a model does; when memory runs out, retries in smaller chunks and then on the CPU.

    Smaller chunks stay for all further images; the CPU computes only the images that need it. Each fallback is logged
    once. The predictions are the same except for rounding.

    Args:
        model: a ``SAN`` in evaluation mode, not wrapped; another model has no smaller chunks without ``shrink_bands``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._shrink = getattr(model, "shrink_bands", None)  # a model of a user's own may have none
        self._on_cpu: nn.Module | None = None

    def __call__(self, batch: list[Sample]) -> list[dict[str, Any]]:
        """The model's predictions of a batch.

        Raises:
            torch.OutOfMemoryError: the CPU's copy of the model has no room either.
        """
        found = self._attempt(batch)
        if found is None and self._shrink is not None:
            logger.warning("Out of GPU memory: predictions are made in chunks smaller by %d from now on.", SMALLER)
            self._shrink(SMALLER)
            self._shrink = None
            found = self._attempt(batch)
        if found is not None:
            return found
        if self._on_cpu is None:
            logger.warning(
                "Out of GPU memory in smaller chunks too: images that do not fit are computed on the CPU, slowly. "
                "Lower INPUT.MAX_SIZE_TEST, or use a GPU with more memory, to have all on the GPU."
            )
            self._on_cpu = _copy_on_cpu(self.model)
        result: list[dict[str, Any]] = self._on_cpu(batch)
        return result

    def _attempt(self, batch: list[Sample]) -> list[dict[str, Any]] | None:
        """The predictions, or None where memory did not suffice; what was allocated for them is given back then."""
        try:
            found: list[dict[str, Any]] = self.model(batch)
            return found
        except torch.cuda.OutOfMemoryError:
            pass  # the error holds on to the tensors that were in the making until this block is left
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _copy_on_cpu(model: nn.Module) -> nn.Module:
    """A copy on the CPU that needs no GPU memory in the making."""
    on_cpu: dict[int, Any] = {id(buffer): buffer.to("cpu", copy=True) for buffer in model.buffers()}
    for parameter in model.parameters():
        on_cpu[id(parameter)] = nn.Parameter(parameter.detach().to("cpu", copy=True), parameter.requires_grad)
    return copy.deepcopy(model, on_cpu)  # with these for their originals
