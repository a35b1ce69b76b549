"""Open-vocabulary segmentation: an image is encoded once, then any number of vocabularies can be applied.

(H, W) image, (h, w) its size in the network, C classes. Source: docs/method.md#7.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from san.clip.text_cache import resolve_folder
from san.clip.text_embedder import TextEmbeddings
from san.data.images import Layout, image_pixels
from san.data.transforms import resize_image, resize_short_side
from san.devices import checked_device, computes_bfloat16, multiplies_int8
from san.hub import SHAPES_CHECKPOINT, load_pretrained
from san.inference.ensemble import Ensemble, is_ensemble_file, load_ensemble
from san.inference.evidence import Evidence
from san.inference.segmentation import EncodedImage, Segmentation
from san.inference.segmenter import ImageLike, Segmenter, name_of_image
from san.io.errors import excerpt
from san.io.image_files import MAX_PIXELS
from san.model.build import warn_of_unseen_pixels
from san.model.config import SANConfig
from san.model.precision import mixed_precision, round_weights
from san.model.san import MaskProposals, SANModel
from san.postprocess import Geometry, View
from san.torch_defaults import torch_defaults
from san.vocabulary.classes import ClassText

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""Number types the network can compute in."""


class Predictor(Segmenter):
    """Open-vocabulary segmentation with one model.

    Several threads may share a predictor: `predict`, `encode` and `segment(..., encoded=...)` depend on their arguments
    only. `set_image` and `predict` remember their image for `segment` without `encoded`.

    It can be copied, pickled and sent to another process, which must be started with "spawn" or "forkserver": a forked
    process hangs after a prediction of its parent, because PyTorch's threads are not forked.

    Results do not depend on what the caller has set in PyTorch: autocast, default number type and device, grad mode.

    Args:
        model: any SAN; it is moved to the device and set to evaluation.
        short_side: the image is resized to this short side, in pixels, before it goes into the network.
        max_size: limit of the long side after resizing.
        short_sides: several instead of `short_side`: the scores are the mean over them.
        flip: whether the scores are also the mean over the image and its mirror image.
        device: where the model runs: "cpu", "cuda", "cuda:N" or "mps".
        dtype: what the network computes in: "float32", "bfloat16" (mixed precision) or "int8" (CLIP's and the side
            network's linear layers; the rest is mixed precision). Text embeddings and scores are float32. With others
            than "float32" the model's weights are rounded for good: load it again to save or train it.
        max_pixels: a larger image is refused; None takes any.
        compiled: the network goes through torch.compile; the first image of each size takes a minute or more, and a C++
            compiler is needed.
        text_cache: folder that keeps text embeddings between runs; "auto" is ``~/.cache/san/text``; None keeps them in
            memory only.

    Raises:
        ValueError: the device, the number type or a short side is not valid.
    """

    @torch_defaults()
    @torch.inference_mode(False)
    def __init__(
        self,
        model: SANModel,
        *,
        short_side: int = 640,
        max_size: int = 2560,
        short_sides: Sequence[int] = (),
        flip: bool = False,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        max_pixels: int | None = MAX_PIXELS,
        compiled: bool = False,
        text_cache: str | Path | None = "auto",
    ) -> None:
        """Prepare the model, in place."""
        self.dtype = _checked_dtype(dtype)
        self.model = model.to(checked_device(device)).eval()
        if self.dtype == torch.bfloat16 and not computes_bfloat16(self.device):
            logger.warning(
                "this CPU has no bfloat16 instructions, and is faster in float32; choose that, or int8 if memory counts"
            )
        if self.dtype == torch.int8 and not multiplies_int8(self.device):
            logger.warning(
                "PyTorch has no fast int8 products for %s: the weights take a quarter of the memory, but the time is "
                "that of float32",
                "this CPU (it has no AVX512-VNNI)" if self.device.type == "cpu" else f"the device {self.device}",
            )
        round_weights(self.model, self.dtype)
        self.short_sides, self.flip = _checked_sides(short_sides or (short_side,)), flip
        for side in self.short_sides:
            warn_of_unseen_pixels(self.model, side)
        self.compiled = compiled
        if compiled:
            self.model.image_side.compile()
        self.max_size, self.max_pixels = max_size, max_pixels
        self.set_text_cache(resolve_folder(text_cache))

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
        short_sides: Sequence[int] = (),
        flip: bool = False,
        text_cache: str | Path | None = "auto",
    ) -> Predictor:
        """Load a model, and return its predictor.

        Args:
            source: "shapes" for the committed model of the shapes world, "san_vit_b_16" or "san_vit_large_14" for the
                published ones, a checkpoint file, a folder of `san.hub.save_pretrained`, or an id on the hub.
            config: model of a bare checkpoint file, as a name or a configuration.
            device: where the model runs.
            dtype: what the network computes in.
            cache_dir: folder of downloads.
            revision: of a model on the hub.
            local_files_only: download nothing.
            compiled: the network goes through torch.compile.
            short_sides: of the image in the network, see `Predictor`; the one the model was trained for by default.
            flip: see `Predictor`.
            text_cache: see `Predictor`.

        Raises:
            ValueError, FileNotFoundError: the file does not exist, or it does not fit.
        """
        if is_ensemble_file(source):
            raise ValueError(f"{str(source)!r} may list an ensemble, no single model; use Predictor.ensemble")
        checked_device(device)  # before a download
        _checked_dtype(dtype)
        model = load_pretrained(
            source, config, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
        sides = short_sides or (model.config.side_adapter.image_size,)
        return cls(
            model, short_sides=sides, flip=flip, device=device, dtype=dtype, compiled=compiled, text_cache=text_cache
        )

    @classmethod
    def ensemble(
        cls,
        models: str | Path | Sequence[Segmenter | str | Path],
        weights: Sequence[float] | None = None,
        **options: Any,
    ) -> Ensemble:
        """Load several models as one, which averages their scores.

        Args:
            models: predictors, or what `from_pretrained` takes; or a YAML file that lists models with their weights.
            weights: one for each model, above 0; equal by default. Not with a file.
            options: of `from_pretrained`, for all models that are loaded, such as `device`.

        Raises:
            ValueError, FileNotFoundError: a model cannot be loaded, or a weight is wrong.
        """
        if isinstance(models, (str, Path)):
            if weights is not None:
                raise ValueError(f"weights are given with the file {str(models)!r}; write them into the file")
            return load_ensemble(
                models,
                lambda each: cls.from_pretrained(
                    each.model, each.config, short_sides=each.short_sides, flip=each.flip, **options
                ),
            )
        members = [each if isinstance(each, Segmenter) else cls.from_pretrained(each, **options) for each in models]
        return Ensemble(members, weights)

    def __repr__(self) -> str:
        clip, dtype = self.model.config.clip.name, str(self.dtype).removeprefix("torch.")
        name, sides = type(self.model).__name__, " ".join(map(str, self.short_sides))
        size = f"short side{'s' if len(self.short_sides) > 1 else ''} {sides}{' and mirrored' if self.flip else ''}"
        return f"Predictor({name} with CLIP {excerpt(clip)}, {self.device}, {dtype}, {size})"

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy; a compiled network is compiled again at its first use."""
        self.__dict__.update(state)
        if self.compiled:
            self.model.image_side.compile()

    @property
    def short_side(self) -> int:
        """Short side of the image in the network, pixels; the first of several."""
        return self.short_sides[0]

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.pixel_mean.device

    @property
    def models(self) -> tuple[SANModel]:
        """The model."""
        return (self.model,)

    @property
    def text_cache(self) -> Path | None:
        """See `Segmenter.text_cache`."""
        return self.model.text_classifier.embedder.disk_cache

    def set_text_cache(self, folder: str | Path | None) -> None:
        """See `Segmenter.set_text_cache`."""
        self.model.text_classifier.embedder.use_disk_cache(folder)

    @torch_defaults()
    @torch.inference_mode()
    def encode_batch(
        self, images: Sequence[ImageLike], *, layout: Layout | None = None, batch_size: int = 4
    ) -> list[EncodedImage]:
        """See `Segmenter.encode_batch`. Scales are computed in order, each also mirrored if `flip`."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give 1 or more")
        pixels = [image_pixels(image, layout=layout, max_pixels=self.max_pixels) for image in images]
        names = [name_of_image(image, index, len(images)) for index, image in enumerate(images)]
        views: list[list[EncodedImage]] = []
        for side in self.short_sides:
            for mirrored in (False, True) if self.flip else (False,):
                found = self._encode_all(pixels, names, side, mirrored=mirrored, batch_size=batch_size)
                # only the first needs the attention biases, which take most of the memory
                views.append(found if not views else [_without_bias(each) for each in found])
        if len(views) == 1:
            return views[0]
        return [replace(first, others=tuple(others)) for first, *others in zip(*views, strict=True)]

    @torch_defaults()
    @torch.inference_mode()
    def evidence(
        self, encoded: EncodedImage, classes: Sequence[str | ClassText], text: TextEmbeddings | None = None
    ) -> Evidence:
        """See `Segmenter.evidence`."""
        if encoded._weights_id != self.model.weights_id:
            raise ValueError("the image was encoded by another model; encode it with this predictor")
        text = self.model.text_classifier.embed_with_bank(classes) if text is None else text
        if len(text.vectors) != len(classes):
            raise ValueError(f"text has embeddings of {len(text.vectors)} classes, the vocabulary has {len(classes)}")
        output = self.model.classify(encoded.proposals, text.vectors, text.bank)
        others = []
        for each in encoded.others:
            other = self.model.classify(each.proposals, text.vectors, text.bank)
            others.append(View(other.mask_logits[0], other.class_logits[0], each.geometry, each.mirrored))
        parts = (output.mask_logits[0], output.class_logits[0], output.attn_bias[0])
        return Evidence(*parts, encoded.geometry, others=tuple(others))

    def _encode_all(
        self,
        pixels: Sequence[npt.NDArray[np.uint8]],
        names: Sequence[str],
        short_side: int,
        *,
        mirrored: bool,
        batch_size: int,
    ) -> list[EncodedImage]:
        """Encode images at one scale."""
        sizes = [resize_short_side(each.shape[0], each.shape[1], short_side, self.max_size) for each in pixels]
        encoded: dict[int, EncodedImage] = {}
        for size in dict.fromkeys(sizes):  # padding to a larger neighbour would change the numbers
            members = [index for index, other in enumerate(sizes) if other == size]
            for start in range(0, len(members), batch_size):
                chunk = members[start : start + batch_size]
                found = self._encode([pixels[i] for i in chunk], size, [names[i] for i in chunk], mirrored=mirrored)
                encoded.update(zip(chunk, found, strict=True))
        return [encoded[index] for index in range(len(pixels))]

    def _encode(
        self, pixels: list[npt.NDArray[np.uint8]], size: tuple[int, int], names: list[str], *, mirrored: bool
    ) -> list[EncodedImage]:
        """Encode images of one size in the network."""
        resized = [torch.from_numpy(resize_image(each, size)).permute(2, 0, 1) for each in pixels]  # (3, h, w)
        batch = self.model.stack([each.flip(2) for each in resized] if mirrored else resized)
        with mixed_precision(self.device, self.dtype):
            (proposals,) = self.model.image_side(self.model, batch)
        padded = (batch.shape[2], batch.shape[3])
        return [
            EncodedImage(
                each,
                MaskProposals(*(part[i : i + 1].float() for part in proposals)),
                Geometry(padded, size, (each.shape[0], each.shape[1])),
                names[i],
                self.model.weights_id,
                mirrored,
            )
            for i, each in enumerate(pixels)
        ]


def _without_bias(encoded: EncodedImage) -> EncodedImage:
    """Return an encoded image without attention biases."""
    proposals = encoded.proposals
    return replace(encoded, proposals=proposals._replace(attn_bias=proposals.attn_bias.new_zeros(0)))


def _checked_sides(sides: Sequence[int]) -> tuple[int, ...]:
    """Return the short sides; refuse values that are not positive integers, and repeated ones."""
    if isinstance(sides, str) or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"short sides are {excerpt(sides)}; give whole numbers of pixels, 1 or more")
    if len({*sides}) < len(sides):
        raise ValueError(f"short sides are {excerpt(sides)}, one of them twice; give each once")
    return tuple(sides)


def _checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in DTYPES:
        raise ValueError(f"unknown number type {dtype!r}; give one of {', '.join(DTYPES)}")
    return DTYPES[str(dtype)]


__all__ = ["DTYPES", "SHAPES_CHECKPOINT", "EncodedImage", "Ensemble", "ImageLike", "Predictor", "Segmentation"]
