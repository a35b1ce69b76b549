"""Results of a predictor: the label map of an image, what it was computed from, and its pictures and files.

Legend: (H, W) image, C classes.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from san.evaluation.predictions import default_image_id, rle_entries
from san.inference.evidence import Evidence, ProposedMask
from san.inference.exports import RegionExports
from san.inference.segments import ImageSegment, check_segment_sizes, id_map
from san.io.errors import brief_repr, printable
from san.io.files import FORMATS, write_text, write_together
from san.model.san import MaskProposals
from san.postprocess import Geometry, mean_scores
from san.visualize import overlay, panel, segment_overlay
from san.visualize.palette import short_name
from san.visualize.panel import preview
from san.vocabulary.vocabulary import Vocabulary

NONE = -1
"""Label of a pixel without a class."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """Everything that a predictor computes for an image without a vocabulary; immutable.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright, read-only.
        proposals: the network's mask proposals, B = 1, float32.
        geometry: the image's sizes; those of the result are (H, W).
        source: name of the image in messages.
        mirrored: whether the network saw the mirror image.
        others: the same image at further scales or mirrored, as the same model encoded it, without attention biases.
        members: the image as each model of an ensemble encoded it; none for one model.
    """

    pixels: npt.NDArray[np.uint8]
    proposals: MaskProposals
    geometry: Geometry
    source: str = "the image"
    _weights_id: str = field(repr=False, default="")  # of the model that made it
    mirrored: bool = False
    others: tuple[EncodedImage, ...] = field(repr=False, default=())
    members: tuple[EncodedImage, ...] = field(repr=False, default=())

    __repr__ = brief_repr


@dataclass(frozen=True, eq=False)
class Segmentation(RegionExports):
    """The segmentation of one image.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright; a copy, which may be drawn on.
        labels: (H, W) int64, indices into `names`; -1 for no class.
        vocabulary: the classes.
        best_scores: (H, W) float32, the score of the best class, also where the label is -1. A score is a sum over mask
            proposals of class probability times mask probability: 0 or more, around 1 for one certain proposal.
        evidence: source of scores and mask proposals; None for a label map that no predictor made.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    vocabulary: Vocabulary
    best_scores: npt.NDArray[np.float32] | None = None
    evidence: Evidence | None = None

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"Segmentation({height} x {width} pixels, {len(self.names)} classes: {self.summary()})"

    def _repr_png_(self) -> bytes:
        """PNG for notebooks: colours and names over the image, and a legend; at most 1024 pixels a side."""
        file = io.BytesIO()
        preview(self.image, self.labels, self.names).save(file, "PNG")
        return file.getvalue()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, in order."""
        return self.vocabulary.names

    def areas(self) -> dict[str, float]:
        """Return the share of the image per class with a pixel, largest first; pixels without a class have no entry."""
        shares = self._counts / self.labels.size
        return {self.names[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable") if shares[i] > 0}

    def none_area(self) -> float:
        """Return the share of the image without a class."""
        return float(np.mean(self.labels == NONE))

    def summary(self, limit: int = 5) -> str:
        """Return the largest classes and their shares on one line: "sky 41.2%, road 20.0%, 3 more".

        Args:
            limit: maximum number of classes.
        """
        areas = list(self.areas().items())
        shown = [f"{printable(short_name(name))} {share:.1%}" for name, share in areas[:limit]]
        if len(areas) > limit:
            shown.append(f"{len(areas) - limit} more")
        if self.none_area() > 0:
            shown.append(f"none of these {self.none_area():.1%}")
        return ", ".join(shown)

    def confidences(self) -> dict[str, float]:
        """Return the mean score of the pixels of each class, in the order of `areas`.

        Raises:
            ValueError: there are no scores.
        """
        if self.best_scores is None:
            raise ValueError("this segmentation has no scores; take one that a Predictor made")
        known = self.labels >= 0
        weights = self.best_scores[known].astype(np.float64)
        sums = np.bincount(self.labels[known], weights=weights, minlength=len(self.names))
        index = {name: i for i, name in enumerate(self.names)}
        return {name: float(sums[index[name]] / self._counts[index[name]]) for name in self.areas()}

    @torch.inference_mode()
    def scores(self) -> npt.NDArray[np.float32]:
        """Return the scores of all classes, (C, H, W) float32: 4·C·H·W bytes, recomputed at each call.

        Raises:
            ValueError: the label map came without evidence.
        """
        return mean_scores(self._evidence().views).cpu().numpy()

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """Return (H, W), true where the label is this class.

        Raises:
            ValueError: the vocabulary has no such name.
        """
        if name not in self.names:
            raise ValueError(f"the vocabulary has no class {name!r}; it has {', '.join(self.names[:20])}")
        found: npt.NDArray[np.bool_] = self.labels == self.names.index(name)
        return found

    def mask_proposals(self, limit: int | None = None) -> tuple[ProposedMask, ...]:
        """Return the mask proposals: first those of a class, then those of "no object", by probability.

        If several scales, mirror images or models were averaged, these are the proposals of the first.

        Args:
            limit: maximum number; all by default. A mask is resized to the image only when it is used.

        Raises:
            ValueError: `limit` is negative, or there is no evidence.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit is {limit}; give the number of masks, or None for all")
        evidence = self._evidence()
        probs, best = evidence.class_logits.float().softmax(dim=-1).max(dim=-1)  # (Q,), (Q,)
        found = [
            ProposedMask(query, self.names[label] if label < len(self.names) else None, probability, evidence)
            for query, (label, probability) in enumerate(zip(best.tolist(), probs.tolist(), strict=True))
        ]
        return tuple(sorted(found, key=lambda mask: (mask.name is None, -mask.probability))[:limit])

    def overlay(self, alpha: float = 0.7, *, segments: Sequence[ImageSegment] | None = None) -> Image.Image:
        """Return the image blended with its class colours.

        Args:
            alpha: weight of the colour against the image, 0..1.
            segments: of `segments`: shown instead of classes, each in a shade of its class's colour with an outline.
        """
        if segments is not None:
            ids, classes = id_map(segments, self.image.shape[:2]), [each.label for each in segments]
            return Image.fromarray(segment_overlay(self.image, ids, classes, self.names, alpha=alpha))
        return Image.fromarray(overlay(self.image, self.labels, self.names, alpha=alpha))

    def panel(self, path: str | Path | None = None) -> Image.Image:
        """Return image and prediction above a legend; written to `path` if given."""
        return panel(self.image, None, self.labels, self.names, path)

    def to_coco_rle(self, file_name: str = "", *, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Return one entry per class with a pixel, in COCO's run-length encoding, for JSON and `COCO.loadRes`.

        The keys are image_id, file_name, category_id (index into `names`), category_name, segmentation (size and
        counts, as in pycocotools), area in pixels and, if there are scores, score.

        Args:
            file_name: of the image.
            image_id: of the image in a COCO data set. By default the file's name without folder and ending, as a number
                if possible: 139 for "val2017/000000000139.jpg", "street" for "street.jpg"; 0 without a file name.
        """
        scores = self.confidences() if self.best_scores is not None else {}
        entries = [
            entry for entry in rle_entries(self.labels, file_name, image_id=image_id) if entry["category_id"] != NONE
        ]
        for entry in entries:
            name = self.names[entry["category_id"]]
            entry |= {"category_name": name, "area": int(self._counts[entry["category_id"]])}
            if name in scores:
                entry["score"] = scores[name]
        return entries

    def to_dict(
        self,
        file_name: str = "",
        *,
        image_id: int | str | None = None,
        segments: Sequence[ImageSegment] | None = None,
    ) -> dict[str, Any]:
        """Return the result for JSON: id, file and size of the image; name, area, share and confidence per class.

        All classes are listed in the order of the vocabulary, also those without a pixel (confidence None).
        `file_name` and `image_id` as in `to_coco_rle`. With `segments` they are listed, too, without their masks.
        """
        check_segment_sizes(segments or (), self.image.shape[:2])
        scores = self.confidences() if self.best_scores is not None else {}
        num_free = len(self.vocabulary.free)
        classes = [
            {
                "index": index,
                "name": each.name,
                "synonyms": list(each.synonyms),
                "prompts": list(each.prompts),
                "context": index >= num_free,
                "area": int(self._counts[index]),
                "share": float(self._counts[index] / self.labels.size),
                "confidence": scores.get(each.name),
            }
            for index, each in enumerate(self.vocabulary.classes)
        ]
        height, width = self.labels.shape
        return {
            "image_id": default_image_id(file_name) if image_id is None else image_id,
            "file_name": file_name,
            "height": height,
            "width": width,
            "none_share": self.none_area(),
            "classes": classes,
            **({} if segments is None else {"segments": [each.to_dict() for each in segments]}),
        }

    def save(
        self,
        target: str | Path,
        formats: Sequence[str] = ("overlay", "labels", "rle", "json"),
        *,
        file_name: str = "",
        image_id: int | str | None = None,
    ) -> dict[str, Path]:
        """Write files: all of them or, after an error, none; older files then stay.

        Args:
            target: beginning of the file names: "out/street" gives out/street_overlay.png, out/street_labels.png,
                out/street_rle.json and out/street.json. In a folder (existing, or ending in a slash) the name is
                "segmentation". Folders are created.
            formats: some of "overlay", "labels" (class indices, 8 bits with 255 for no class, with more than 255
                classes 16 bits with 65535), "rle", "json" and "panel".
            file_name: of the image, noted in "rle" and "json".
            image_id: noted there too; see `to_coco_rle`.

        Returns:
            The file of each format.

        Raises:
            ValueError: a format is unknown, or the files cannot be written.
        """
        _check_formats(formats)
        path = Path(target)
        if path.is_dir() or str(target).endswith(("/", os.sep)):
            path /= "segmentation"
        files = {each: path.with_name(path.name + FORMATS[each]) for each in formats}
        self.write(files, file_name=file_name, image_id=image_id)
        return files

    def write(
        self,
        files: Mapping[str, Path],
        *,
        file_name: str = "",
        image_id: int | str | None = None,
        segments: Sequence[ImageSegment] | None = None,
    ) -> None:
        """Write files with given names: all of them or, after an error, none; older files then stay.

        Args:
            files: the file of each format, one of `FORMATS`; folders are created.
            file_name: of the image, noted in "rle" and "json".
            image_id: noted there too; see `to_coco_rle`.
            segments: see `overlay` and `to_dict`.

        Raises:
            ValueError: a format is unknown, two formats have one file, or a file cannot be written.
        """
        _check_formats(files)
        writers = {file: self._writer(each, file_name, image_id, segments) for each, file in files.items()}
        if len(writers) < len(files):
            raise ValueError(f"two formats in one file of {', '.join(map(str, files.values()))}; give each its own")
        try:
            write_together(writers)
        except OSError as error:
            shown = ", ".join(str(file) for file in writers)
            raise ValueError(f"cannot write {shown} ({error}); give a folder that can be written to") from error

    def label_image(self) -> Image.Image:
        """Return the label map as a grey picture: up to 255 classes 8 bits, 255 for none; else 16 bits, 65535."""
        none, dtype = (255, np.uint8) if len(self.names) <= 255 else (65535, np.uint16)
        return Image.fromarray(np.where(self.labels == NONE, none, self.labels).astype(dtype))

    def _writer(
        self, kind: str, file_name: str, image_id: int | str | None, segments: Sequence[ImageSegment] | None
    ) -> Callable[[Path], None]:
        """Return the function that writes a format to a file."""
        if kind in ("rle", "json"):
            make = self.to_coco_rle if kind == "rle" else partial(self.to_dict, segments=segments)
            content = make(file_name, image_id=image_id)
            return partial(write_text, text=json.dumps(content, indent=1, ensure_ascii=False))
        overlay = partial(self.overlay, segments=segments)
        drawn: dict[str, Callable[[], Image.Image]] = {
            "overlay": overlay,
            "labels": self.label_image,
            "panel": self.panel,
        }
        picture = drawn[kind]()
        level = 6 if kind == "labels" else 3  # of photographs a third of the time, for 2 to 11 % more bytes
        return lambda path: picture.save(path, "PNG", compress_level=level)

    @cached_property
    def _counts(self) -> npt.NDArray[np.int64]:
        """(C,) pixels per class."""
        return np.bincount(self.labels[self.labels >= 0], minlength=len(self.names))

    def _evidence(self) -> Evidence:
        if self.evidence is None:
            raise ValueError("this segmentation has a label map only; take one that a Predictor made")
        return self.evidence


def _check_formats(formats: Iterable[str]) -> None:
    """Refuse unknown formats, and a text instead of a list."""
    unknown = [each for each in formats if each not in FORMATS]
    if unknown or isinstance(formats, str):
        raise ValueError(f"unknown formats {unknown or formats!r}; give a list of {', '.join(FORMATS)}")
