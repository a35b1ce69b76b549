"""Panoptic quality and average precision of a model on a data set: counts over images and workers.

C classes, (H, W) image.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from san.data.panoptic import describe_categories, describe_segments, id_image
from san.evaluation.instances import InstanceMatches, missing_package
from san.evaluation.oracle import Proposals
from san.evaluation.panoptic import PanopticCounts, Segments, panoptic_metrics
from san.io.files import write_text
from san.panoptic_merge import PanopticMap, PanopticOptions, find_instances, merge_queries
from san.postprocess import View

logger = logging.getLogger("san.evaluation")

PANOPTIC_FILE, PANOPTIC_FOLDER = "panoptic_predictions.json", "panoptic_predictions"
"""Predictions in COCO's panoptic format: the JSON file, and the folder of its PNGs."""


@functools.cache  # once per run
def _warn_of(reason: str) -> None:
    logger.warning("AP is left out: %s", reason)


class PanopticEvaluation:
    """Counts of matched segments and instances.

    Args:
        names: C class names.
        things: names of the classes that are things; the others are stuff.
        groups: further groups of classes: name -> class names.
        options: how queries become segments.
        category_ids: ids of the classes in written predictions; by default the class index plus 1.

    Attributes:
        counts: matched and unmatched segments.
        instances: matched instances; None without pycocotools, which is logged.
        written: images and annotations of the predictions that were written.
    """

    def __init__(
        self,
        names: Sequence[str],
        things: Sequence[str],
        groups: Mapping[str, Sequence[str]] | None = None,
        options: PanopticOptions | None = None,
        *,
        category_ids: Sequence[int] | None = None,
    ) -> None:
        self.names, self.options = [*names], options or PanopticOptions()
        known = {name: index for index, name in enumerate(self.names)}
        unknown = [name for name in things if name not in known]
        if unknown:
            raise ValueError(f"the thing {unknown[0]!r} is none of the {len(known)} classes; register it among them")
        self.things = sorted(known[name] for name in things)
        of_kind = {True: list[str](), False: list[str]()}
        for index, name in enumerate(self.names):
            of_kind[index in self.things].append(name)
        self._own_groups = dict(groups or {})
        self.groups = {"things": of_kind[True], "stuff": of_kind[False], **self._own_groups}
        self.category_ids = [*(category_ids or range(1, len(self.names) + 1))]
        self.counts = PanopticCounts(len(self.names))
        reason = missing_package()
        self.instances = None if reason else InstanceMatches()
        if reason:
            _warn_of(reason)
        self.written: list[dict[str, Any]] = []

    def update(self, proposals: Proposals, truth: Segments, *, file_name: str = "the image") -> PanopticMap:
        """Count one image.

        Args:
            proposals: the network's output for it.
            truth: its segments.
            file_name: of the image.

        Returns:
            the predicted segments.

        Raises:
            ValueError: sizes differ, or a segment has no class.
        """
        view = View(proposals.mask_logits, proposals.class_logits, proposals.geometry)
        found = merge_queries(view, self.things, self.options, shrink=proposals.shrink)
        classes = {number: int(label) for number, label in enumerate(found.labels, start=1)}
        self.counts.update(Segments(found.ids.astype(np.int64), classes), truth, file_name=file_name)
        if self.instances is not None:
            seen = find_instances(view, self.things, connected=self.options.connected, shrink=proposals.shrink)
            self.instances.update(seen, truth, self.things, name=file_name)
        return found

    def write_image(self, found: PanopticMap, path: Path, root: Path, *, file_name: str, image_id: int | str) -> None:
        """Write the PNG of an image, and note it for `write`.

        Args:
            found: its segments.
            path: of the PNG, below `root`.
            root: folder of the PNGs.
            file_name: of the image.
            image_id: of the image.

        Raises:
            OSError: the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        id_image(found.ids).save(path)
        category_of = {number: self.category_ids[label] for number, label in enumerate(found.labels.tolist(), start=1)}
        segments = describe_segments(found.ids, category_of)
        height, width = found.ids.shape
        self.written.append(
            {
                "image": {"id": image_id, "file_name": file_name, "height": height, "width": width},
                "annotation": {
                    "image_id": image_id,
                    "file_name": path.relative_to(root).as_posix(),
                    "segments_info": segments,
                },
            }
        )

    def write(self, path: Path) -> None:
        """Write the JSON file of all images of `write_image`, in the order of their names.

        Raises:
            OSError: the file cannot be written.
        """
        entries = sorted(self.written, key=lambda each: str(each["annotation"]["file_name"]))
        content = {
            "images": [each["image"] for each in entries],
            "annotations": [each["annotation"] for each in entries],
            "categories": describe_categories(self.category_ids, self.names, self.groups["things"]),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content))

    def figures(self) -> dict[str, float]:
        """Return the figures in percent: those of `panoptic_metrics`, then those of `average_precision`."""
        matches = self.instances or InstanceMatches()  # without images every figure is NaN
        return {
            **panoptic_metrics(self.counts, self.names, self.groups),
            **matches.average_precision(self.names, self.things, self._own_groups),
        }

    @property
    def state(self) -> dict[str, Any]:
        """All counts as arrays and plain data, for `merge`."""
        matches = self.instances or InstanceMatches()
        return {
            "counts": self.counts.arrays,
            "instances": matches.arrays,
            "images": matches.images,
            "written": self.written,
        }

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add another worker's `state`.

        Raises:
            ValueError: it is not a state of such an evaluation.
        """
        try:
            counts, instances, images = state["counts"], state["instances"], [*map(str, state["images"])]
            written = [{"image": each["image"], "annotation": each["annotation"]} for each in state["written"]]
        except (LookupError, TypeError) as error:
            raise ValueError(f"it holds no counts of segments ({type(error).__name__}: {error})") from error
        if self.instances is not None:
            self.instances.merge(images, instances)
        self.counts.merge(counts)
        self.written += written
