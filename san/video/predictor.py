"""Open-vocabulary segmentation of videos, frame by frame or with queries shared by chunks of frames.

B frames of a batch, Q queries of the model, P shared queries, S side width, T_s patch tokens, C classes, (H, W) frame.
Source: docs/video.md#method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from san.clip.text_embedder import TextEmbeddings
from san.clip.towers import ShallowFeatures
from san.data.images import image_pixels
from san.data.transforms import resize_image, resize_short_side
from san.inference.predictor import Predictor
from san.inference.segmentation import Segmentation
from san.model.parts import SideFeatures
from san.model.precision import mixed_precision
from san.model.san import MaskProposals, SANModel
from san.postprocess import Geometry, have_non_finite, labels_and_scores, refuse_non_finite
from san.record import FieldError, Options, option
from san.torch_defaults import torch_defaults
from san.video.chunks import overlapping_chunks
from san.video.clustering import kmeans
from san.vocabulary.vocabulary import Vocabulary, VocabularyLike

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class VideoOptions(Options):
    """Options of video segmentation."""

    shared: bool = option(True, "whether the frames of a chunk share queries; otherwise each is an image by itself")
    clusters: int | None = option(
        None, "shared queries of a chunk; by default as many as the model has (100 in the published ones)", least=1
    )
    chunk: int = option(32, "frames that share queries", least=1, most=10_000)
    overlap: int = option(8, "frames that a chunk has in common with the one before it", least=0, most=9_999)
    seed: int = option(0, "of the clustering", least=0, most=2**63 - 1)
    batch_size: int = option(4, "frames that go through the network together", least=1, most=10_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap >= self.chunk:
            raise FieldError(
                f"overlap is {self.overlap} of a chunk of {self.chunk} frames; set it below the chunk", "overlap"
            )


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Features of a frame that are kept until its chunk is complete; tensors with B = 1.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        class_token: CLIP's (1, 1, D) after its shallow blocks.
        patch_tokens: CLIP's (1, T, D) after its shallow blocks, on `clip_grid`.
        side: queries (1, Q, S) and patch tokens (1, T_s, S) after the side network's last block.
        clip_grid: (h, w).
    """

    pixels: Frame
    class_token: Tensor
    patch_tokens: Tensor
    side: SideFeatures
    clip_grid: tuple[int, int]


class VideoPredictor:
    """Segments videos of any length; keeps the features of one chunk of frames in memory.

    Args:
        predictor: the model, its input size, device and number type.
        options: by default queries are shared.

    Raises:
        ValueError: queries cannot be shared in this model or in a compiled one.
    """

    def __init__(self, predictor: Predictor, options: VideoOptions | None = None) -> None:
        self.predictor, self.options = predictor, options or VideoOptions()
        model = predictor.model
        if self.options.shared and type(model).propose is not SANModel.propose:
            raise ValueError(
                f"{type(model).__name__} overrides `propose`, which shared queries do not call; segment "
                "frame by frame (shared=False, --frame-by-frame)"
            )
        if self.options.shared and predictor.compiled:
            raise ValueError(
                "a compiled network does not support shared queries; leave out compiled=True (--compile), or segment "
                "frame by frame (shared=False, --frame-by-frame)"
            )

    def segment(
        self,
        frames: Iterable[Frame],
        vocabulary: VocabularyLike,
        *,
        threshold: float = 0.0,
        none_of_these: bool = False,
    ) -> Iterator[Segmentation]:
        """Yield one result per frame, in order, as soon as its chunk is done.

        Args:
            frames: (H, W, 3) uint8 RGB each, all of one size; consumed as needed.
            vocabulary: see `Vocabulary.parse`.
            threshold: see `Predictor.segment`.
            none_of_these: see `Predictor.segment`.

        Returns:
            The results. With shared queries they have no evidence, because a query has one class per chunk, not per
            frame.

        Raises:
            ValueError: immediately, if the vocabulary or the threshold is not valid. From the iterator, if a frame is
                not an image or has another size than the first, or the network's outputs are NaN or infinite.
        """
        words = Vocabulary.parse(vocabulary)
        if not threshold >= 0:
            raise ValueError(f"the threshold is {threshold}; give a score, 0 or more")
        found = {"threshold": threshold, "none_of_these": none_of_these}
        checked = _of_one_size(frames, self.predictor.max_pixels)
        if not self.options.shared:
            return self._frame_by_frame(checked, words, found)
        text = self.predictor.model.text_classifier.embed_with_bank(words.classes)
        return self._shared(checked, words, text, found)

    def _frame_by_frame(
        self, frames: Iterator[Frame], words: Vocabulary, found: dict[str, Any]
    ) -> Iterator[Segmentation]:
        size, number = self.options.batch_size, 0
        while batch := list(islice(frames, size)):
            for encoded in self.predictor.encode_batch(batch, batch_size=size):
                named = replace(encoded, source=f"frame {number}")
                yield self.predictor.segment(words, encoded=named, **found)
                number += 1

    def _shared(
        self, frames: Iterator[Frame], words: Vocabulary, text: TextEmbeddings, found: dict[str, Any]
    ) -> Iterator[Segmentation]:
        done = 0
        for chunk, own in overlapping_chunks(self._features(frames), self.options.chunk, self.options.overlap):
            mask_logits, class_logits = self._outputs(chunk, text, own, first=done)
            for features, masks in zip(chunk[own], mask_logits, strict=True):
                yield self._segmentation(features, masks, class_logits, words, found)
            done += len(mask_logits)

    def _features(self, frames: Iterator[Frame]) -> Iterator[FrameFeatures]:
        while batch := list(islice(frames, self.options.batch_size)):
            yield from self._features_of(batch)

    @torch_defaults()
    @torch.inference_mode()
    def _features_of(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        model = self.predictor.model
        size = self._geometry(frames[0]).image_size
        images = model.stack([torch.from_numpy(resize_image(each, size)).permute(2, 0, 1) for each in frames])
        with self._autocast():
            clip, (side,) = model.features(images)
        return [
            FrameFeatures(
                pixels,
                clip.class_tokens[-1][i : i + 1],
                clip.patch_tokens[-1][i : i + 1],
                SideFeatures(side.queries[i : i + 1], side.patch_tokens[i : i + 1], side.grid),
                clip.grid,
            )
            for i, pixels in enumerate(frames)
        ]

    @torch_defaults()
    @torch.inference_mode()
    def _outputs(
        self, chunk: list[FrameFeatures], text: TextEmbeddings, own: slice, first: int
    ) -> tuple[Tensor, Tensor]:
        """Return mask logits (own frames, P, h_s, w_s), and the class logits (P, C + 1) of the chunk.

        Args:
            chunk: the frames.
            text: of the C classes.
            own: which of them belong to the chunk.
            first: number of the first of these in the video, for messages.
        """
        queries, share = self._shared_queries(chunk)
        found = []
        for start in range(0, len(chunk), self.options.batch_size):
            batch = chunk[start : start + self.options.batch_size]
            patches = torch.cat([each.side.patch_tokens for each in batch])  # (B, T_s, S)
            side = SideFeatures(queries.to(patches.dtype).expand(len(batch), -1, -1), patches, batch[0].side.grid)
            clip = ShallowFeatures(
                (torch.cat([each.patch_tokens for each in batch]),),
                (torch.cat([each.class_token for each in batch]),),
                batch[0].clip_grid,
            )
            with self._autocast():
                (proposals,) = self.predictor.model.propose_from(clip, [side], share)
            kept = proposals._replace(attn_bias=proposals.attn_bias.new_empty(0))  # biases take most of the memory
            found.append([part.float() for part in kept])
        whole = MaskProposals(*map(torch.cat, zip(*found, strict=True)))  # of all frames
        output = self.predictor.model.classify(whole, text.vectors, text.bank)  # (frames, P, ...)
        non_finite = have_non_finite(output.mask_logits, output.class_logits)
        refuse_non_finite(non_finite, [f"frame {first - own.start + index}" for index in range(len(chunk))])
        return output.mask_logits[own], output.class_logits.mean(dim=0)

    def _shared_queries(self, chunk: list[FrameFeatures]) -> tuple[Tensor, Tensor]:
        """Return shared queries (1, P, S), and the shares (P, Q) of the model's queries in them."""
        queries = torch.cat([each.side.queries for each in chunk])  # (frames, Q, S)
        num_queries = queries.shape[1]
        points = queries.flatten(0, 1)  # (frames * Q, S)
        if not points.isfinite().all():
            raise ValueError(
                "the network's queries are NaN or infinite; compute in float32 if they were in half precision, else "
                "use a checkpoint from before training diverged"
            )
        clusters = kmeans(points, self.options.clusters or num_queries, seed=self.options.seed)
        cells = clusters.labels * num_queries + torch.arange(len(points)) % num_queries
        share = torch.bincount(cells, minlength=len(clusters.centres) * num_queries).view(-1, num_queries).float()
        share /= share.sum(dim=1, keepdim=True)
        return clusters.centres.float().to(queries.device)[None], share.to(queries.device)

    @torch_defaults()
    @torch.inference_mode()
    def _segmentation(
        self,
        features: FrameFeatures,
        mask_logits: Tensor,
        class_logits: Tensor,
        words: Vocabulary,
        found: dict[str, Any],
    ) -> Segmentation:
        geometry = self._geometry(features.pixels)
        labels, best = labels_and_scores(mask_logits, class_logits, geometry, **found)
        return Segmentation(features.pixels.copy(), labels.cpu().numpy(), words, best.cpu().numpy())

    def _geometry(self, pixels: Frame) -> Geometry:
        """Return the sizes of a frame, as in `Predictor.encode`."""
        height, width = pixels.shape[:2]
        size = resize_short_side(height, width, self.predictor.short_side, self.predictor.max_size)
        step = self.predictor.model.config.size_divisibility
        padded = (-(-size[0] // step) * step, -(-size[1] // step) * step)
        return Geometry(padded, size, (height, width))

    def _autocast(self) -> torch.autocast:
        return mixed_precision(self.predictor.device, self.predictor.dtype)


def _of_one_size(frames: Iterable[Frame], max_pixels: int | None) -> Iterator[Frame]:
    """Yield the frames as pixels; refuse one that has another size than the first."""
    size: tuple[int, ...] | None = None
    for number, frame in enumerate(frames):
        pixels = image_pixels(frame, max_pixels=max_pixels)
        size = size or pixels.shape[:2]
        if pixels.shape[:2] != size:
            raise ValueError(
                f"frame {number} has {pixels.shape[0]} x {pixels.shape[1]} pixels, those before it {size[0]} x "
                f"{size[1]}; give frames of one size"
            )
        yield pixels
