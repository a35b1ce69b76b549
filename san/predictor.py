"""Masks for any words: an image is encoded once, then any number of vocabularies is applied to it.

(H, W) image, C classes. Source: method.md section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from san.checkpoint import load_checkpoint_file, load_weights
from san.data.transforms import read_image, resize_image, resize_short_side
from san.model.build import build_san
from san.model.config import SANConfig, variant
from san.model.san import MaskProposals, SANModel
from san.postprocess import semantic_labels
from san.visualize import panel

SHAPES_CHECKPOINT = Path(__file__).parent / "data" / "shapes" / "assets" / "san.pth"


@dataclass(frozen=True)
class Segmentation:
    """One image, named pixel by pixel.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) int64, indices into `names`.
        names: the vocabulary, in its order.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def areas(self) -> dict[str, float]:
        """Share of the image per class that has a pixel, largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names)) / self.labels.size
        return {self.names[i]: float(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i] > 0}

    def panel(self, path: str | Path | None = None) -> Image.Image:
        """Image and labelled prediction over a legend; written to `path` if given."""
        return panel(self.image, None, self.labels, self.names, path)


class Predictor:
    """Open-vocabulary segmentation of single images.

    Args:
        model: any SAN.
        short_side: the image is resized to this short side, in pixels, before it goes into the network.
        max_size: limit of its long side then.
        device: where the model runs.
    """

    def __init__(
        self, model: SANModel, *, short_side: int = 640, max_size: int = 2560, device: str | torch.device = "cpu"
    ) -> None:
        """Takes the model over: moves it to the device and sets it to evaluation."""
        self.model = model.to(device).eval()
        self.short_side, self.max_size = short_side, max_size
        self._image: npt.NDArray[np.uint8] | None = None
        self._proposals: MaskProposals | None = None
        self._sizes: dict[str, tuple[int, int]] = {}

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path, config: str | SANConfig = "vit_b16", *, device: str | torch.device = "cpu"
    ) -> Predictor:
        """A predictor with weights.

        Args:
            checkpoint: "shapes" for the committed model of the shapes world, or a checkpoint file, published or own.
            config: the model the file belongs to, by name or in full; not needed for "shapes".
            device: where the model runs.

        Raises:
            ValueError, FileNotFoundError: there is no such file, or it does not fit.
        """
        if checkpoint == "shapes":
            checkpoint, config = SHAPES_CHECKPOINT, "shapes"
        resolved = variant(config) if isinstance(config, str) else config
        content = load_checkpoint_file(checkpoint)
        model = build_san(resolved, clip_weights="format" in content)
        load_weights(model, content)
        return cls(model, short_side=resolved.side_adapter.image_size, device=device)

    def predict(self, image: str | Path | npt.NDArray[np.uint8] | Image.Image, names: Sequence[str]) -> Segmentation:
        """`set_image`, then `segment`."""
        self.set_image(image)
        return self.segment(names)

    @torch.inference_mode()
    def set_image(self, image: str | Path | npt.NDArray[np.uint8] | Image.Image) -> None:
        """Encodes an image: all that does not depend on the vocabulary.

        Args:
            image: a file, a PIL image, or RGB (H, W, 3) uint8.

        Raises:
            ValueError, FileNotFoundError: it cannot be read, or has another form.
        """
        pixels = _pixels(image)
        height, width = pixels.shape[:2]
        size = resize_short_side(height, width, self.short_side, self.max_size)
        resized = torch.from_numpy(resize_image(pixels, size)).permute(2, 0, 1)  # (3, h, w)
        batch = self.model.stack([resized])
        (self._proposals,) = self.model.propose(batch)
        self._image = pixels
        self._sizes = {
            "padded_size": (batch.shape[2], batch.shape[3]),
            "image_size": size,
            "output_size": (height, width),
        }

    @torch.inference_mode()
    def segment(self, names: Sequence[str]) -> Segmentation:
        """The encoded image under a vocabulary: every pixel gets one of the names.

        Raises:
            ValueError: no image is set, or a name is blank or stands twice.
        """
        if self._proposals is None or self._image is None:
            raise ValueError("no image is encoded; call set_image before segment")
        if isinstance(names, str):
            raise ValueError(f"the vocabulary is one string, {names!r}; give a list of names")
        names = tuple(name.strip() for name in names)
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise ValueError(f"names stand twice in the vocabulary: {', '.join(twice)}; remove the repetitions")
        output = self.model.classify(self._proposals, self.model.text_classifier.embed(names))
        labels = semantic_labels(output.mask_logits[0], output.class_logits[0], **self._sizes)
        return Segmentation(self._image, labels.cpu().numpy(), names)


def _pixels(image: Any) -> npt.NDArray[np.uint8]:
    """RGB (H, W, 3) uint8."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(
            f"the image has shape {pixels.shape} and type {pixels.dtype}; "
            "give (height, width, 3) uint8 RGB, a PIL image or a file"
        )
    return pixels
