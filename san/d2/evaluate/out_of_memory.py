"""Fallback of predictions when the GPU runs out of memory: smaller chunks, then the CPU."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

from san.d2.data.batches import BatchSample
from san.torch_defaults import torch_defaults

logger = logging.getLogger("san.d2.memory")

SMALLER = 16
"""Factor by which the chunks of the post-processing shrink."""


class OutOfMemoryFallback:
    """Calls a model; if memory runs out, retries with smaller chunks and then on the CPU.

    Smaller chunks are kept for all further images; the CPU computes only the images that need it. Each fallback is
    logged once. The predictions are the same except for rounding.

    Args:
        model: a ``SAN`` in evaluation mode, not wrapped; a model without ``shrink_bands`` has no smaller chunks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._shrink = getattr(model, "shrink_bands", None)  # a custom model may have none
        self._on_cpu: nn.Module | None = None

    def __call__(self, batch: list[BatchSample]) -> list[dict[str, Any]]:
        """Predict a batch.

        Raises:
            torch.OutOfMemoryError: a copy of the model on the CPU does not fit into memory either.
        """
        found = self._attempt(batch)
        if found is None and self._shrink is not None:
            logger.warning("Out of GPU memory: predictions now use chunks that are smaller by a factor of %d.", SMALLER)
            self._shrink(SMALLER)
            self._shrink = None
            found = self._attempt(batch)
        if found is not None:
            return found
        if self._on_cpu is None:
            logger.warning(
                "Out of GPU memory with smaller chunks too: images that do not fit are computed on the CPU, slowly. "
                "To compute all on the GPU, lower INPUT.MAX_SIZE_TEST or use a GPU with more memory."
            )
            self._on_cpu = _copy_on_cpu(self.model)
        result: list[dict[str, Any]] = self._on_cpu(batch)
        return result

    def with_batch(self, batch: list[BatchSample]) -> tuple[list[BatchSample], list[dict[str, Any]]]:
        """Return a batch and its predictions, computed with PyTorch's defaults and without gradients in any thread."""
        with torch_defaults(), torch.no_grad():
            return batch, self(batch)

    def _attempt(self, batch: list[BatchSample]) -> list[dict[str, Any]] | None:
        """Predict a batch, or return None and free the memory if it runs out."""
        try:
            found: list[dict[str, Any]] = self.model(batch)
            return found
        except torch.cuda.OutOfMemoryError:
            pass  # the error references intermediate tensors until this block ends
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def _copy_on_cpu(model: nn.Module) -> nn.Module:
    """Copy a model to the CPU without using GPU memory."""
    on_cpu: dict[int, Any] = {id(buffer): buffer.to("cpu", copy=True) for buffer in model.buffers()}
    for parameter in model.parameters():
        on_cpu[id(parameter)] = nn.Parameter(parameter.detach().to("cpu", copy=True), parameter.requires_grad)
    return copy.deepcopy(model, on_cpu)  # maps each tensor to its copy
