"""What segments images with any words, whatever computes the scores: one model, or several.

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
from san.inference.segmentation import EncodedImage, Evidence, Segmentation
from san.postprocess import have_non_finite, mean_labels, refuse_non_finite
from san.torch_defaults import torch_defaults
from san.vocabulary.classes import ClassText
from san.vocabulary.vocabulary import Vocabulary, VocabularyLike

ImageLike = str | Path | Image.Image | npt.NDArray[Any] | Tensor
"""A file, a Pillow image, an array or a tensor; see `Segmenter.encode`."""


class Segmenter(ABC):
    """Encodes images, and names the pixels of an encoded image by any number of vocabularies.

    Attributes:
        max_pixels: a larger image is refused; None takes any.
        text_cache: folder that keeps text embeddings from one run to the next; None keeps them in memory only.
    """

    max_pixels: int | None
    _encoded: EncodedImage | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where results are computed."""

    @property
    @abstractmethod
    def models(self) -> tuple[nn.Module, ...]:
        """What computes: one model, or several."""

    @property
    @abstractmethod
    def text_cache(self) -> Path | None:
        """Folder that keeps text embeddings from one run to the next; None keeps them in memory only."""

    @text_cache.setter
    @abstractmethod
    def text_cache(self, folder: str | Path | None) -> None: ...

    @abstractmethod
    def encode_batch(
        self, images: Sequence[ImageLike], *, layout: Layout | None = None, batch_size: int = 4
    ) -> list[EncodedImage]:
        """`encode` of several images; those that have one size in the network go through it together.

        Args:
            images: see `encode`.
            layout: see `encode`, for all of them.
            batch_size: at most so many together.

        Raises:
            ValueError: `batch_size` is not 1 or more, or see `encode`.
        """

    @abstractmethod
    def evidence(
        self, encoded: EncodedImage, classes: Sequence[str | ClassText], text: TextEmbeddings | None = None
    ) -> Evidence:
        """What the scores of some classes are made from.

        Args:
            encoded: by this segmenter.
            classes: C names or classes.
            text: their embeddings, where they are known.

        Raises:
            ValueError: the image was encoded by another model, or `text` is of other classes.
        """

    def encode(self, image: ImageLike, *, layout: Layout | None = None) -> EncodedImage:
        """All that does not depend on the vocabulary; nothing of it is remembered here.

        Args:
            image: a file or Pillow image of any mode but floating point, turned upright by its EXIF orientation; an
                array, RGB (H, W, 3) uint8, or grey, with transparency, 16-bit or black and white; or a tensor, uint8 or
                floating point in 0..1.
            layout: the order of an array's or a tensor's axes, "HWC" or "CHW"; arrays are HWC unless said otherwise,
                of a tensor it must be said.

        Raises:
            ValueError, FileNotFoundError: it cannot be read, has another form, or is too large.
        """
        return self.encode_batch([image], layout=layout)[0]

    def set_image(self, image: ImageLike, *, layout: Layout | None = None) -> None:
        """`encode`, remembered for `segment`."""
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
        """An encoded image under a vocabulary: every pixel gets one of the names, or none.

        Args:
            vocabulary: see `Vocabulary.parse`.
            encoded: the image; the one of `set_image` by default.
            text: the vocabulary's embeddings, as `model.text_classifier.embedder` gives them; by default they are
                embedded now, and remarks on them are logged.
            threshold: a pixel whose best score is below it is none of these; scores are 0 or more, around 1 where one
                mask proposal is sure.
            none_of_these: whether a pixel is none of these where the model's learnt "no object" scores above every
                class.

        Raises:
            ValueError: no image is set, the vocabulary makes no sense, `text` is of another one, the image was encoded
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
        refuse_non_finite(non_finite, [encoded.source] * len(views))  # a GPU has been waited for
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
        """`encode`, then `segment`; a vocabulary that makes no sense is refused before the image is encoded.

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
        """Several images under one vocabulary, in their order; see `encode_batch` and `segment`."""
        words = Vocabulary.parse(vocabulary)
        return [
            self.segment(words, encoded=encoded, threshold=threshold, none_of_these=none_of_these)
            for encoded in self.encode_batch(images, layout=layout, batch_size=batch_size)
        ]


def name_of_image(image: ImageLike, index: int, count: int) -> str:
    """What messages call one of several images."""
    if isinstance(image, (str, Path)):
        return repr(str(image))
    return f"image {index}" if count > 1 else "the image"
