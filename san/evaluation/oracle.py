"""Separates mask errors from classification errors by counts per image (docs/error_analysis.md#definitions).

Legend: Q proposals, C classes, P classes in one image's ground truth, (H, W) image. A segment is all labelled pixels of
one class in one image; m_q(x) is proposal q's mask probability, p_q(c) its class probability, o_q = sum of p_q(c) over
the classes without "no object".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from san.evaluation.confusion import ConfusionMatrix, add_counts
from san.postprocess import Geometry, View, mask_bands, semantic_labels
from san.torch_defaults import torch_defaults
from san.vocabulary.label_sets import check_label_values

Counts = npt.NDArray[np.int64]

RECALL_IOUS = (0.5, 0.75)
"""A segment is recalled if a proposal has at least this IoU with it."""

SEGMENT_COLUMNS = ("all", "recalled_50", "recalled_75", "named", "named_recalled_50")
"""Counts per class: all segments, recalled at each IoU, classified correctly, recalled at 0.5 and correct."""

_BAND_VALUES = 2**22  # in memory at a time; below 2**24, so that float32 counts pixels exactly
_MAX_WIDTH = 8192  # of a band of `mask_bands`


@dataclass(frozen=True)
class Proposals:
    """The network's output for one image, before it is converted to a label map.

    Attributes:
        mask_logits: (Q, h_s, w_s), before the sigmoid.
        class_logits: (Q, C+1), the last column "no object".
        geometry: sizes of the network's input, of the image in it, and of the label map.
        shrink: factor by which the band height is reduced to save memory.
    """

    mask_logits: Tensor
    class_logits: Tensor
    geometry: Geometry
    shrink: int = 1


def proposals_of(output: Mapping[str, Any]) -> Proposals:
    """Return the proposals in a model's output for one image.

    Raises:
        ValueError: the output has none.
    """
    found = output.get("proposals")
    if not isinstance(found, Proposals):
        raise ValueError(
            "the error analysis (TEST.ORACLE), like a panoptic set, needs the model's proposals, but its output has "
            "none; let the forward of your meta-architecture return what that of san.d2.SAN does, or set TEST.ORACLE "
            "False"
        )
    return found


class OracleCounts:
    """Counts over images and workers; their size depends only on the number of classes.

    Args:
        num_classes: C.
        ignore_label: label of pixels that are not counted.

    Attributes:
        true_names: pixel counts if every proposal is given its true class.
        true_masks: pixel counts if the network classifies the true segments.
        best_pixels: (C, 2) int64, intersection and union of each class and its best proposals.
        segments: (C, 5) int64, columns as in `SEGMENT_COLUMNS`.
    """

    def __init__(self, num_classes: int, ignore_label: int) -> None:
        self.true_names = ConfusionMatrix(num_classes, ignore_label)
        self.true_masks = ConfusionMatrix(num_classes, ignore_label)
        self.best_pixels: Counts = np.zeros((num_classes, 2), np.int64)
        self.segments: Counts = np.zeros((num_classes, len(SEGMENT_COLUMNS)), np.int64)

    @property
    def counts(self) -> dict[str, Counts]:
        """All counts by name."""
        return {
            "true_names": self.true_names.counts,
            "true_masks": self.true_masks.counts,
            "best_pixels": self.best_pixels,
            "segments": self.segments,
        }

    def merge(self, counts: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add another worker's `counts`.

        Raises:
            ValueError: a name, type or shape differs, or a count is negative; nothing is added in that case.
        """
        add_counts(self.counts, counts, f"of an error analysis are none of {len(self.segments)} classes")

    @torch.no_grad()
    @torch_defaults()
    def update(self, proposals: Proposals, label: npt.NDArray[Any], *, file_name: str = "the image") -> None:
        """Count one image.

        Args:
            proposals: the network's output for it.
            label: (H, W) integers, class indices or the ignore label.
            file_name: name for error messages.

        Raises:
            ValueError: sizes or numbers of classes differ, or a label is not a class; nothing is counted in that case.
        """
        num_classes, ignore_label = self.true_names.num_classes, self.true_names.ignore_label
        if proposals.geometry.output_size != label.shape or proposals.class_logits.shape[1] != num_classes + 1:
            raise ValueError(
                f"the proposals of {file_name} are for {proposals.class_logits.shape[1] - 1} classes at "
                f"{tuple(proposals.geometry.output_size)}, but its label map has {num_classes} at {label.shape}; "
                "predict at the label map's size with the data set's classes"
            )
        ignored = label == ignore_label
        present = np.unique(label[~ignored]).astype(np.int64)  # (P,)
        check_label_values(present, num_classes, ignore_label, source=f"label map of {file_name}")
        if not len(present):
            return
        segments = np.searchsorted(present, label)  # (H, W), an index into present
        segments[ignored] = len(present)
        areas = torch.from_numpy(np.bincount(segments.ravel(), minlength=len(present) + 1)[: len(present)])
        soft, hard = overlaps(proposals, torch.from_numpy(segments), len(present))  # (Q, P) each
        probs = proposals.class_logits.float().softmax(dim=-1).cpu()  # (Q, C+1)
        renamed = present[_renamed_labels(proposals, probs, soft)]
        names = segment_names(probs, soft, areas).numpy()  # (P,)
        self.true_names.update(renamed, label, file_name=file_name)
        self.true_masks.update(np.append(names, 0)[segments], label, file_name=file_name)
        self._count_segments(present, names, hard, areas)

    def _count_segments(self, present: Counts, names: Counts, hard: Tensor, areas: Tensor) -> None:
        """Count the best proposal of each segment, and whether the segment is recalled and classified correctly."""
        unions = hard.sum(dim=1, keepdim=True) + areas - hard  # (Q, P)
        iou, best = (hard / unions).max(dim=0)  # (P,) each
        columns = torch.arange(len(present))
        pixels = torch.stack([hard[best, columns], unions[best, columns]], dim=1)  # (P, 2)
        self.best_pixels[present] += pixels.numpy().astype(np.int64)
        recalled = [(iou >= least).numpy() for least in RECALL_IOUS]
        named = names == present
        rows = np.stack([np.ones_like(named), *recalled, named, named & recalled[0]], axis=1)  # (P, 5)
        self.segments[present] += rows


@torch_defaults()
def overlaps(proposals: Proposals, segments: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """Count the pixels that proposals and segments share, without an array of Q x H x W values.

    Args:
        proposals: proposals of an image.
        segments: (H, W) int64, the segment of each pixel; `num_segments` for pixels without one.
        num_segments: P.

    Returns:
        Two (Q, P) float64 on the CPU: the sums of m_q(x), and the numbers of pixels with m_q(x) > 0.5.
    """
    num_queries, width = len(proposals.mask_logits), proposals.geometry.output_size[1]
    values_per_pixel = 2 * num_queries + num_segments
    num_rows = max(1, _BAND_VALUES // proposals.shrink // (values_per_pixel * min(width, _MAX_WIDTH)))
    soft = torch.zeros(num_queries, num_segments, dtype=torch.float64)
    hard = torch.zeros_like(soft)
    device, view = proposals.mask_logits.device, View(proposals.mask_logits, proposals.class_logits, proposals.geometry)
    indices = torch.arange(num_segments, device=device)
    for rows, columns, mask_probs in mask_bands([view], num_rows):
        inside = segments[rows, columns].to(device).reshape(-1, 1) == indices  # (pixels, P)
        pixels, members = mask_probs.flatten(1), inside.float()
        soft += (pixels @ members).cpu()
        hard += ((pixels > 0.5).float() @ members).cpu()
    return soft, hard


def segment_names(probs: Tensor, soft: Tensor, areas: Tensor) -> Tensor:
    """Return the class that the network gives each true segment: the class of its best matching proposal.

    The proposal is the one with the highest o_q * softIoU(q, g), softIoU = sum of m_q in g over (sum of m_q in g or out
    of it + pixels of g - sum of m_q in g). The factor o_q excludes duplicates that the network itself suppresses.

    Args:
        probs: (Q, C+1) class probabilities, the last column "no object".
        soft: (Q, P) sums of m_q over each segment.
        areas: (P,) pixels of each segment.

    Returns:
        (P,) int64.
    """
    soft_iou = soft / (soft.sum(dim=1, keepdim=True) + areas - soft)
    chosen = (soft_iou * probs[:, :-1].sum(dim=1, keepdim=True)).argmax(dim=0)  # (P,)
    return probs[chosen, :-1].argmax(dim=1)


def _renamed_labels(proposals: Proposals, probs: Tensor, soft: Tensor) -> Counts:
    """Return the label map, (H, W) segment indices, if each proposal gives all of o_q to the class it overlaps most."""
    renamed = torch.zeros(len(soft), soft.shape[1] + 1)  # (Q, P+1)
    renamed[torch.arange(len(soft)), soft.argmax(dim=1)] = probs[:, :-1].sum(dim=1)
    renamed[:, -1] = probs[:, -1]
    logits = renamed.log().to(proposals.mask_logits.device)  # softmax of these gives `renamed`
    labels = semantic_labels(proposals.mask_logits, logits, proposals.geometry, shrink=proposals.shrink)
    return labels.cpu().numpy()
