"""Stands in for `detectron2.checkpoint`: checkpoint files, the same that Detectron2 writes and reads.

fvcore's `Checkpointer` does the work: ``<name>.pth`` holds ``model``, one state per checkpointable, and what else is
given on saving; the file ``last_checkpoint`` names the last one. Differences on purpose: files are only read as plain
data (``weights_only``) on every version of torch, and the pickled formats of Detectron's model zoo are not read.
"""

from __future__ import annotations

import pickle
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from san.d2.standin import comm


class DetectionCheckpointer(Checkpointer):  # type: ignore[misc]
    """Saves and loads a model together with what else makes up a run's state.

    Args:
        model: its ``state_dict`` is the file's ``model``; unwrapped if it is distributed.
        save_dir: folder of the files.
        save_to_disk: whether `save` writes; by default on worker 0 only.
        **checkpointables: further objects with ``state_dict`` and ``load_state_dict``, by key in the file.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        super().__init__(
            model,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **checkpointables,
        )

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Reads a file as plain data.

        Args:
            filename: a local path.

        Returns:
            The file's dictionary, with key ``model``; a bare state dictionary is taken as the model's.
        """
        try:
            content = torch.load(filename, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{filename} cannot be read as a checkpoint ({type(error).__name__}); it must be a file written by "
                "torch.save that holds tensors and plain values only"
            ) from error
        if not isinstance(content, dict):
            raise ValueError(f"{filename} holds a {type(content).__name__}; a checkpoint is a dictionary of tensors")
        return content if "model" in content else {"model": content}
