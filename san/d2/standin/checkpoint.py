"""Stands in for `detectron2.checkpoint`: checkpoint files, the same that Detectron2 writes and reads.

Based on fvcore's `Checkpointer`: ``<name>.pth`` contains ``model``, one state per checkpointable, and the entries given
on saving; the file ``last_checkpoint`` names the last one. Intended differences: files are only read as dense tensors
and plain data, and the pickled formats of Detectron's model zoo are not read.
"""

from __future__ import annotations

from typing import Any

from fvcore.common.checkpoint import Checkpointer
from torch import nn

from san.checkpoint import load_checkpoint_file
from san.d2.standin import comm


class DetectionCheckpointer(Checkpointer):  # type: ignore[misc]
    """Saves and loads a model together with the other state of a run.

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

        Raises:
            ValueError: it is damaged, or contains other than dense tensors and plain data.
        """
        return load_checkpoint_file(filename, averaged=False)
