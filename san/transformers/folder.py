"""Writes the folder that AutoModel and AutoProcessor load."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from san.clip.weights_file import writing_safetensors
from san.hub.card import model_card
from san.hub.folder import refuse_rounded
from san.hub.remote import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from san.io.files import write_text
from san.model.san import SANModel
from san.transformers.modeling import SANForSegmentation
from san.transformers.processing import SANProcessor


def save_transformers(model: SANModel, folder: str | Path) -> None:
    """Write a model and its processor as a new folder; all files appear or none.

    Args:
        model: in single precision; all its weights are written, including CLIP's.
        folder: must not exist.

    Raises:
        ValueError: a file cannot describe the model, or its weights were rounded for prediction.
        OSError: the folder exists, or cannot be written.
    """
    refuse_rounded(model)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name[:40]}.") as beside:
        whole = Path(beside) / "whole"
        wrapped = SANForSegmentation.of(model)
        with writing_safetensors():
            wrapped.save_pretrained(whole)
        SANProcessor.of(model).save_pretrained(whole)
        # safetensors creates a file that only the user may read
        (whole / WEIGHTS_FILE).chmod((whole / CONFIG_FILE).stat().st_mode)
        size, config = (whole / WEIGHTS_FILE).stat().st_size, wrapped.config.record().model
        write_text(whole / CARD_FILE, model_card(config, num_bytes=size, dtype="float32", for_transformers=True))
        os.rename(whole, folder)
