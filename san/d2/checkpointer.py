"""Checkpoints of a run: Detectron2's files and bookkeeping, SAN's strict and safe reading of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from san.checkpoint import load_checkpoint_file, load_weights
from san.d2.api import DetectionCheckpointer


class SANCheckpointer(DetectionCheckpointer):
    """Reads own and published checkpoints as plain tensors, and refuses those that do not fit the model entirely.

    Files are ``model_0004999.pth`` ... ``model_final.pth`` with the keys model, trainer and iteration;
    ``last_checkpoint`` names the latest.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint; "" loads nothing.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no checkpoint, or does not fit the model.
        """
        check_exists(path)
        content: dict[str, Any] = super().load(path, *args, **kwargs)
        return content

    def _load_file(self, f: str) -> dict[str, Any]:
        return load_checkpoint_file(f)

    def _load_model(self, checkpoint: Any) -> None:
        """Loads the tensors of a checkpoint; unlike the base's, nothing that does not fit is skipped."""
        content = {key: value for key, value in checkpoint.items() if key not in ("trainer", "iteration")}
        load_weights(self.model.model, content)


def check_exists(path: str) -> None:
    """Refuses a path, other than "" or an address, where there is no file."""
    if path and "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; correct MODEL.WEIGHTS or OUTPUT_DIR")


def holds_clip(path: str) -> bool:
    """Whether a checkpoint holds CLIP's weights too, so that they need not be had from anywhere else.

    Args:
        path: checkpoint; "" or an address give False.

    Raises:
        FileNotFoundError, ValueError: as loading it would.
    """
    check_exists(path)
    return bool(path) and "://" not in path and "format" not in load_checkpoint_file(path)


def starting_weights(weights: str, folder: str, *, resume: bool) -> str:
    """The checkpoint a run starts from.

    Args:
        weights: MODEL.WEIGHTS.
        folder: OUTPUT_DIR.
        resume: whether to prefer the latest checkpoint of the folder.

    Returns:
        Its path; "" for none.
    """
    if resume and (Path(folder) / "last_checkpoint").is_file():
        return str(Path(folder) / (Path(folder) / "last_checkpoint").read_text(encoding="utf-8").strip())
    return weights
