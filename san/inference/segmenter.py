"""The base of predictors and ensembles: segments images with any words.

(H, W) image, C classes. Source: docs/method.md#7.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from san.clip.text_embedder import TextEmbeddings
from san.data.images import Layout
from san.inference.evidence import Evidence
from san.inference.segmentation import EncodedImage, Segmentation
from san.postprocess import have_non_finite, mean_labels, refuse_non_finite
from san.torch_defaults import torch_defaults
from san.vocabulary.classes import ClassText
from san.vocabulary.vocabulary import Vocabulary, VocabularyLike

ImageLike = str | Path | Image.Image | npt.NDArray[Any] | Tensor
"""A file, a Pillow image, an array or a tensor; see `Segmenter.encode`."""


class Segmenter(ABC):
    """Encodes images, and segments an encoded image with any number of vocabularies.

    Attributes:
        max_pixels: a larger image is refused; None takes any.
    """

    max_pixels: int | None
    _encoded: EncodedImage | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the results."""

    @property
    @abstractmethod
    def models(self) -> tuple[nn.Module, ...]:
        """What computes: one model, or several."""

    @property
    @abstractmethod
    def text_cache(self) -> Path | None:
        """Folder that keeps text embeddings between runs; None keeps them in memory only."""

    @abstractmethod
    def set_text_cache(self, folder: str | Path | None) -> None:
        """Keeps text embeddings in a folder from now on; None keeps them in memory only."""

    @abstractmethod
    def encode_batch(
        self, images: Sequence[ImageLike], *, layout: Layout | None = None, batch_size: int = 4
    ) -> list[EncodedImage]:
        """Encode several images; those of one size in the network are computed together.

        Args:
            images: see `encode`.
            layout: see `encode`, for all of them.
            batch_size: maximum number of images per forward pass.

        Raises:
            ValueError: `batch_size` is not 1 or more, or see `encode`.
        """

    @abstractmethod
    def evidence(
        self, encoded: EncodedImage, classes: Sequence[str | ClassText], text: TextEmbeddings | None = None
    ) -> Evidence:
        """Return what the scores of some classes are computed from.

        Args:
            encoded: by this segmenter.
            classes: C names or classes.
            text: their embeddings, if known.

        Raises:
            ValueError: the image was encoded by another model, or `text` is of other classes.
        """

    def encode(self, image: ImageLike, *, layout: Layout | None = None) -> EncodedImage:
        """Compute everything that does not depend on the vocabulary; the result is not remembered.

        Args:
            image: a file or Pillow image of any mode but floating point, turned upright by its EXIF orientation; an
                array, RGB (H, W, 3) uint8, or grey, with transparency, 16-bit or black and white; or a tensor, uint8 or
                floating point in 0..1.
            layout: order of the axes, "HWC" or "CHW"; required for tensors, by default HWC for arrays.

        Raises:
            ValueError, FileNotFoundError: it cannot be read, has another type or shape, or is too large.
        """
        return self.encode_batch([image], layout=layout)[0]

    def set_image(self, image: ImageLike, *, layout: Layout | None = None) -> None:
        """Encode an image, and remember it for `segment`."""
        self._encoded = self.encode(image, layout=layout)

    @torch_defaults()
    @torch.inference_mode()
    def segment(
        self,
        vocabulary: VocabularyLike,
        *,
        encoded: EncodedImage | None = None,
        text: TextEmbeddings | None = None,
        threshold: float = 0.0,
        none_of_these: bool = False,
    ) -> Segmentation:
        """Segment an encoded image: every pixel gets one of the classes, or none.

        Args:
            vocabulary: see `Vocabulary.parse`.
            encoded: the image; the one of `set_image` by default.
            text: the vocabulary's embeddings, as `model.text_classifier.embedder` gives them; by default they are
                embedded now, and remarks on them are logged.
            threshold: pixels whose best score is below it get no class; scores are 0 or more, around 1 for one certain
                mask proposal.
            none_of_these: whether pixels get no class if the learnt "no object" scores above every class.

        Raises:
            ValueError: no image is set, the vocabulary is not valid, `text` is of another one, the image was encoded
                by another model, or the network's outputs are NaN or infinite.
        """
        encoded = encoded or self._encoded
        if encoded is None:
            raise ValueError("no image is encoded; call set_image before segment")
        if not threshold >= 0:
            raise ValueError(f"the threshold is {threshold}; give a score, 0 or more")
        words = Vocabulary.parse(vocabulary)
        evidence = self.evidence(encoded, words.classes, text)
        views = evidence.views
        non_finite = torch.cat([have_non_finite(each.mask_logits[None], each.class_logits[None]) for each in views])
        labels, best = mean_labels(views, threshold=threshold, none_of_these=none_of_these)
        found = labels.cpu().numpy()
        refuse_non_finite(non_finite, [encoded.source] * len(views))  # last, because it waits for the GPU
        return Segmentation(encoded.pixels.copy(), found, words, best.cpu().numpy(), evidence)

    def predict(
        self,
        image: ImageLike,
        vocabulary: VocabularyLike,
        *,
        layout: Layout | None = None,
        threshold: float = 0.0,
        none_of_these: bool = False,
    ) -> Segmentation:
        """Encode, then segment; an invalid vocabulary is refused before the image is encoded.

        The image is remembered for `segment`, as by `set_image`.
        """
        words = Vocabulary.parse(vocabulary)
        encoded = self.encode(image, layout=layout)
        result = self.segment(words, encoded=encoded, threshold=threshold, none_of_these=none_of_these)
        self._encoded = encoded
        return result

    def predict_batch(
        self,
        images: Sequence[ImageLike],
        vocabulary: VocabularyLike,
        *,
        layout: Layout | None = None,
        threshold: float = 0.0,
        none_of_these: bool = False,
        batch_size: int = 4,
    ) -> list[Segmentation]:
        """Segment several images with one vocabulary, in order; see `encode_batch` and `segment`."""
        words = Vocabulary.parse(vocabulary)
        return [
            self.segment(words, encoded=encoded, threshold=threshold, none_of_these=none_of_these)
            for encoded in self.encode_batch(images, layout=layout, batch_size=batch_size)
        ]


def name_of_image(image: ImageLike, index: int, count: int) -> str:
    """Return the name of one of several images, for messages."""
    if isinstance(image, (str, Path)):
        return repr(str(image))
    return f"image {index}" if count > 1 else "the image"
