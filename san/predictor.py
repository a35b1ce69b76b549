"""Masks for any words: an image is encoded once, then any number of vocabularies is applied to it.

(H, W) image, (h, w) its size in the network, C classes. Source: docs/method.md#7.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from san.clip.text_cache import resolve_folder
from san.clip.text_embedder import TextEmbeddings
from san.data.image_files import MAX_PIXELS
from san.data.images import Layout, image_pixels
from san.data.transforms import resize_image, resize_short_side
from san.devices import checked_device
from san.errors import excerpt
from san.hub import SHAPES_CHECKPOINT, load_pretrained
from san.model.build import warn_of_unseen_pixels
from san.model.config import SANConfig
from san.model.precision import hold_weights
from san.model.san import MaskProposals, SANModel
from san.postprocess import Geometry, have_non_finite, labels_and_scores, refuse_non_finite
from san.segmentation import EncodedImage, Evidence, Segmentation
from san.torch_defaults import torch_defaults
from san.vocabulary import Vocabulary, VocabularyLike

ImageLike = str | Path | Image.Image | npt.NDArray[Any] | Tensor
"""A file, a Pillow image, an array or a tensor; see `Predictor.encode`."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Number types the network can compute in."""


class Predictor:
    """Open-vocabulary segmentation.

    Several threads may share a predictor: `predict`, `encode` and `segment(..., encoded=...)` use nothing but their
    arguments. `set_image` and `predict` remember their image for a `segment` without one.

    It can be copied, pickled and sent to another process. Start that with "spawn" or "forkserver": a forked process
    hangs if its parent has predicted before, as PyTorch's threads are not forked.

    Results do not depend on what the caller has set in PyTorch: autocast, default number type and device, grad mode.

    Args:
        model: any SAN; it is moved to the device and set to evaluation.
        short_side: the image is resized to this short side, in pixels, before it goes into the network.
        max_size: limit of its long side then.
        device: where the model runs: "cpu", "cuda", "cuda:N" or "mps".
        dtype: what the network computes in: "float32" or "bfloat16" (mixed precision; words and scores stay float32).
            With "bfloat16" the model's weights are rounded for good: load it again to save or train it.
        max_pixels: a larger image is refused; None takes any.
        compiled: the network goes through torch.compile; the first image of each size takes a minute or more, and a C++
            compiler is needed.

    Attributes:
        text_cache: folder that keeps text embeddings from one run to the next; None keeps them in memory only.

    Raises:
        ValueError: there is no such device or number type.
    """

    @torch_defaults()
    @torch.inference_mode(False)
    def __init__(
        self,
        model: SANModel,
        *,
        short_side: int = 640,
        max_size: int = 2560,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        max_pixels: int | None = MAX_PIXELS,
        compiled: bool = False,
    ) -> None:
        """Takes the model over."""
        self.dtype = _checked_dtype(dtype)
        self.model = model.to(checked_device(device)).eval()
        hold_weights(self.model, self.dtype)
        warn_of_unseen_pixels(self.model, short_side)
        self.compiled = compiled
        if compiled:
            self.model.image_side.compile()
        self.short_side, self.max_size, self.max_pixels = short_side, max_size, max_pixels
        self.text_cache = resolve_folder("auto")
        self._encoded: EncodedImage | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        config: str | SANConfig | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        cache_dir: str | Path | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        compiled: bool = False,
    ) -> Predictor:
        """A predictor with weights.

        Args:
            source: "shapes" for the committed model of the shapes world, "san_vit_b_16" or "san_vit_large_14" for the
                published ones, a checkpoint file, a folder of `san.hub.save_pretrained`, or an id on the hub.
            config: the model a bare checkpoint file belongs to, by name or in full.
            device: where the model runs.
            dtype: what the network computes in.
            cache_dir: folder of downloads.
            revision: of a model on the hub.
            local_files_only: download nothing.
            compiled: the network goes through torch.compile.

        Raises:
            ValueError, FileNotFoundError: there is no such file, or it does not fit.
        """
        checked_device(device)  # before a download
        _checked_dtype(dtype)
        model = load_pretrained(
            source, config, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
        side = model.config.side_adapter.image_size
        return cls(model, short_side=side, device=device, dtype=dtype, compiled=compiled)

    def __repr__(self) -> str:
        clip, dtype = self.model.config.clip.name, str(self.dtype).removeprefix("torch.")
        name = type(self.model).__name__
        return f"Predictor({name} with CLIP {excerpt(clip)}, {self.device}, {dtype}, short side {self.short_side})"

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy; what was compiled is compiled again when it is first used."""
        self.__dict__.update(state)
        if self.compiled:
            self.model.image_side.compile()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.pixel_mean.device

    @property
    def text_cache(self) -> Path | None:
        """Folder that keeps text embeddings from one run to the next; None keeps them in memory only."""
        folder = self.model.text_classifier.embedder.disk_cache
        return None if folder is None else Path(folder)

    @text_cache.setter
    def text_cache(self, folder: str | Path | None) -> None:
        self.model.text_classifier.embedder.disk_cache = folder

    def encode(self, image: ImageLike, *, layout: Layout | None = None) -> EncodedImage:
        """All that does not depend on the vocabulary; the predictor remembers nothing.

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

    @torch_defaults()
    @torch.inference_mode()
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
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give 1 or more")
        pixels = [image_pixels(image, layout=layout, max_pixels=self.max_pixels) for image in images]
        sizes = [resize_short_side(each.shape[0], each.shape[1], self.short_side, self.max_size) for each in pixels]
        names = [_name_of(image, index, len(images)) for index, image in enumerate(images)]
        encoded: dict[int, EncodedImage] = {}
        for size in dict.fromkeys(sizes):  # padding to a larger neighbour would change the numbers
            members = [index for index, other in enumerate(sizes) if other == size]
            for start in range(0, len(members), batch_size):
                chunk = members[start : start + batch_size]
                found = self._encode([pixels[i] for i in chunk], size, [names[i] for i in chunk])
                encoded.update(zip(chunk, found, strict=True))
        return [encoded[index] for index in range(len(pixels))]

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
        if encoded._weights_id != self.model.weights_id:
            raise ValueError("the image was encoded by another model; encode it with this predictor")
        if not threshold >= 0:
            raise ValueError(f"the threshold is {threshold}; give a score, 0 or more")
        words = Vocabulary.parse(vocabulary)
        text_embed = self.model.text_classifier.embed(words.classes) if text is None else text.vectors
        if len(text_embed) != len(words):
            raise ValueError(f"text has embeddings of {len(text_embed)} classes, the vocabulary has {len(words)}")
        output = self.model.classify(encoded.proposals, text_embed)
        non_finite = have_non_finite(output.mask_logits, output.class_logits)
        evidence = Evidence(output.mask_logits[0], output.class_logits[0], output.attn_bias[0], encoded.geometry)
        labels, best = labels_and_scores(
            evidence.mask_logits,
            evidence.class_logits,
            evidence.geometry,
            threshold=threshold,
            none_of_these=none_of_these,
        )
        found = labels.cpu().numpy()
        refuse_non_finite(non_finite, [encoded.source])  # a GPU has been waited for
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

    def _encode(
        self, pixels: list[npt.NDArray[np.uint8]], size: tuple[int, int], names: list[str]
    ) -> list[EncodedImage]:
        """Images that have one size in the network."""
        resized = [torch.from_numpy(resize_image(each, size)).permute(2, 0, 1) for each in pixels]  # (3, h, w)
        batch = self.model.stack(resized)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            (proposals,) = self.model.image_side(self.model, batch)
        padded = (batch.shape[2], batch.shape[3])
        return [
            EncodedImage(
                each,
                MaskProposals(
                    proposals.mask_logits[i : i + 1].float(),
                    proposals.attn_bias[i : i + 1].float(),
                    proposals.sls_embed[i : i + 1].float(),
                ),
                Geometry(padded, size, (each.shape[0], each.shape[1])),
                names[i],
                self.model.weights_id,
            )
            for i, each in enumerate(pixels)
        ]


def _name_of(image: ImageLike, index: int, count: int) -> str:
    """What messages call one of several images."""
    if isinstance(image, (str, Path)):
        return repr(str(image))
    return f"image {index}" if count > 1 else "the image"


def _checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in DTYPES:
        raise ValueError(f"unknown number type {dtype!r}; give one of {', '.join(DTYPES)}")
    return DTYPES[str(dtype)]


__all__ = ["DTYPES", "SHAPES_CHECKPOINT", "EncodedImage", "ImageLike", "Predictor", "Segmentation"]
