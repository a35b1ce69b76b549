"""Average precision of instances by pycocotools, from matches that are kept per image instead of masks.

N found instances, M true ones, T = 10 IoU thresholds 0.5, 0.55, ..., 0.95, (H, W) image.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from san.evaluation.panoptic import Segments
from san.io.errors import MissingExtraError, require_extra
from san.panoptic_merge import Instance

THRESHOLDS = 10
_IMAGE, _CLASS, _MATCHED, _IGNORED = range(4)  # columns of `found`
_COUNTED = 2  # column of `true`, beside _IMAGE, _CLASS and _IGNORED
_BITS = 1 << np.arange(THRESHOLDS)

Numbers = npt.NDArray[np.int64]


def missing_package() -> str:
    """Return why pycocotools cannot be imported; "" if it can."""
    try:
        require_extra("train", "average precision of instances", "pycocotools")
    except MissingExtraError as error:
        return str(error)
    return ""


class InstanceMatches:
    """Found and true instances of all images, and which of them match at each IoU threshold; by COCO's own code.

    Attributes:
        images: a name per image, by which images are ordered: results depend on neither workers nor interruptions.
    """

    def __init__(self) -> None:
        self.images: list[str] = []
        self._found = [np.zeros((0, 4), np.int64)]  # image, class, bits of matched and of ignored thresholds
        self._scores = [np.zeros(0)]
        self._true = [np.zeros((0, 4), np.int64)]  # image, class, number that counts, number that is ignored

    def update(self, found: Iterable[Instance], truth: Segments, things: Collection[int], *, name: str) -> None:
        """Match the instances of one image.

        Args:
            found: instances of things.
            truth: segments of the same size; those of stuff are not used, crowds are ignored.
            things: class indices.
            name: of the image.
        """
        from pycocotools import mask as coco_mask

        def annotation(number: int, label: int, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
            code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            area = float(np.count_nonzero(mask))
            return {"id": number, "image_id": 1, "category_id": label, "segmentation": code, "area": area, "iscrowd": 0}

        results = [
            annotation(number, each.label, each.mask) | {"score": each.score} for number, each in enumerate(found, 1)
        ]
        known = [key for key in np.unique(truth.ids).tolist() if truth.classes.get(key) in things]
        truths = [
            annotation(number, truth.classes[key], truth.ids == key) | {"iscrowd": int(key in truth.crowd)}
            for number, key in enumerate(known, 1)
        ]
        self._add(_matches_of_image(truths, results, truth.ids.shape, sorted(things)), name)

    def _add(self, matches: Sequence[Mapping[str, Any]], name: str) -> None:
        """Add COCO's matches of one image, one mapping per class."""
        image = len(self.images)
        self.images.append(name)
        for each in matches:
            label, ignored = each["category_id"], np.asarray(each["gtIgnore"], np.int64)
            self._true.append(np.array([[image, label, (ignored == 0).sum(), (ignored != 0).sum()]], np.int64))
            if each["dtScores"]:
                rows = np.empty((len(each["dtScores"]), 4), np.int64)
                rows[:, _IMAGE], rows[:, _CLASS] = image, label
                rows[:, _MATCHED], rows[:, _IGNORED] = ((each[key] > 0).T @ _BITS for key in ("dtMatches", "dtIgnore"))
                self._found.append(rows)
                self._scores.append(np.array(each["dtScores"], np.float64))

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but the images' names: found (N, 4) int64, scores (N,) float64, true (M, 4) int64."""
        parts: dict[str, list[Any]] = {"found": self._found, "scores": self._scores, "true": self._true}
        return {name: np.concatenate(part) for name, part in parts.items()}

    def merge(self, images: Sequence[str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add another worker's `images` and `arrays`.

        Raises:
            ValueError: they do not belong together; nothing is added in that case.
        """
        found, scores, true = (arrays.get(name) for name in ("found", "scores", "true"))
        tables: list[Any] = [each for each in (found, true) if _is_table(each, len(images))]
        if len(tables) < 2 or not isinstance(scores, np.ndarray) or scores.dtype != np.float64:
            raise ValueError("the matches of instances are damaged")
        if scores.shape != (len(tables[0]),):
            raise ValueError(f"there are {len(tables[0])} matches of instances, but scores of shape {scores.shape}")
        for own, more in zip((self._found, self._true), tables, strict=True):
            own.append(more + np.array([len(self.images), 0, 0, 0]))
        self._scores.append(scores)
        self.images += images

    def average_precision(
        self, names: Sequence[str], things: Sequence[int], groups: Mapping[str, Sequence[str]]
    ) -> dict[str, float]:
        """Compute average precision in percent, NaN where there is no true instance.

        Args:
            names: C class names.
            things: class indices.
            groups: group name -> class names; groups without a thing have no figure.

        Returns:
            AP (mean over the thresholds), AP50 and AP75, then AP-<group>, then AP-<name> of each thing.
        """
        precision = self._precision(sorted(things))  # (T, R, K)
        of_class = {names[label]: precision[:, :, place] for place, label in enumerate(sorted(things))}
        every = [*of_class.values()]
        result = {"AP": _mean(every), "AP50": _mean(every, 0), "AP75": _mean(every, 5)}
        for group, members in groups.items():
            own = [of_class[name] for name in members if name in of_class]
            if own:
                result[f"AP-{group}"] = _mean(own)
        return result | {f"AP-{name}": _mean([values]) for name, values in of_class.items()}

    def _precision(self, things: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return COCO's precision (T, R, K) at R recalls of K things; -1 where there is no true instance."""
        if not self.images or not things:
            return np.full((THRESHOLDS, 1, len(things)), -1.0)
        from pycocotools.cocoeval import COCOeval

        by_name = sorted(range(len(self.images)), key=self.images.__getitem__)
        order = {image: place for place, image in enumerate(by_name)}
        cells: list[dict[str, Any] | None] = [None] * (len(things) * len(self.images))
        arrays, place = self.arrays, {label: index * len(self.images) for index, label in enumerate(things)}
        found, scores = arrays["found"], arrays["scores"]
        rows: dict[tuple[int, int], list[int]] = {}
        for row, (image, label) in enumerate(found[:, :_MATCHED].tolist()):
            rows.setdefault((image, label), []).append(row)
        for image, label, counted, ignored in arrays["true"].tolist():
            own = rows.get((image, label), [])
            cells[place[label] + order[image]] = {
                "dtScores": scores[own].tolist(),
                "dtMatches": (found[own, _MATCHED] & _BITS[:, None]) > 0,
                "dtIgnore": (found[own, _IGNORED] & _BITS[:, None]) > 0,
                "gtIgnore": np.repeat([0, 1], [counted, ignored]),
            }
        with contextlib.redirect_stdout(io.StringIO()):  # it reports on its progress
            summary = COCOeval(iouType="segm")
            _restrict(summary, [*range(len(self.images))], things)
            summary.evalImgs, summary._paramsEval = cells, copy.deepcopy(summary.params)
            summary.accumulate()
        precision: npt.NDArray[np.float64] = summary.eval["precision"][:, :, :, 0, 0]
        return precision


def _is_table(found: Any, num_images: int) -> bool:
    """Whether a value may be the rows `found` or `true` of some images."""
    if not isinstance(found, np.ndarray) or found.dtype != np.int64 or found.shape[1:] != (4,):
        return False
    return not len(found) or (found.min() >= 0 and found[:, _IMAGE].max() < num_images)


def _mean(precision: Sequence[npt.NDArray[np.float64]], threshold: int | None = None) -> float:
    """Return the mean in percent of the precision (T, R) of classes, at all thresholds or one; NaN without a class."""
    chosen = [each if threshold is None else each[threshold] for each in precision if each.min() > -1]
    return 100 * float(np.mean(chosen)) if chosen else float("nan")


def _matches_of_image(
    truths: list[dict[str, Any]], results: list[dict[str, Any]], size: tuple[int, ...], things: Sequence[int]
) -> list[dict[str, Any]]:
    """Return COCO's matches of an image, one mapping per class with a true or a found instance."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def as_set(annotations: list[dict[str, Any]]) -> Any:
        made = COCO()
        image = {"id": 1, "height": size[0], "width": size[1]}
        made.dataset = {"images": [image], "annotations": annotations, "categories": [{"id": each} for each in things]}
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(as_set(truths), as_set(results), "segm")
        _restrict(evaluation, [1], things)
        evaluation.evaluate()
    return [each for each in evaluation.evalImgs if each is not None]


def _restrict(evaluation: Any, images: list[int], things: Sequence[int]) -> None:
    """Let COCO's evaluation be of instances of any size, and of at most 100 per class and image."""
    parameters = evaluation.params
    parameters.imgIds, parameters.catIds, parameters.maxDets = images, [*things], [100]
    parameters.areaRng, parameters.areaRngLbl = [[0, 1e10]], ["all"]
