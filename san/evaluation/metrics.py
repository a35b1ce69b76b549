"""Segmentation metrics of a confusion matrix, in percent, with both mIoU conventions (docs/method.md#9.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from san.evaluation.confusion import ConfusionMatrix

Floats = npt.NDArray[np.float64]


def metrics(
    matrix: ConfusionMatrix,
    class_names: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """Compute the benchmarks' metrics in percent, in the order below.

    A class is present if it has labelled pixels. IoU and accuracy of an absent class are NaN, whether or not it was
    predicted. All metrics are NaN if no pixel was counted.

    Args:
        matrix: the counts.
        class_names: C distinct names for the per-class keys; by default the class indices.
        groups: group name -> class names; names that are not a class here are skipped.

    Returns:
        mIoU: mean IoU of the present classes (Detectron2 since July 2022).
        mIoU_detectron2_v0.6: the same sum divided by the number of classes present or predicted (earlier papers).
        fwIoU: mean IoU weighted by each class's share of labelled pixels.
        mACC: mean over present classes of the share of their pixels that are correct.
        pACC: share of all labelled pixels that are correct.
        zero_iou_share: share of present classes with IoU 0. mIoU-<group>: mean IoU of the present classes of a group.
        IoU-<name>, ACC-<name>: per class.

    Raises:
        ValueError: the names are not C distinct names.
    """
    names = _names(class_names, matrix.num_classes)
    correct = matrix.counts.diagonal().astype(np.float64)  # (C,)
    labelled = matrix.counts.sum(axis=1).astype(np.float64)
    predicted = matrix.counts.sum(axis=0).astype(np.float64)
    present = labelled > 0
    union = labelled + predicted - correct
    iou = _ratio(correct, np.where(present, union, 0.0))
    accuracy = _ratio(correct, labelled)
    num_present = present.sum()
    iou_sum = iou[present].sum()
    summary = {
        "mIoU": _ratio(iou_sum, num_present),
        "mIoU_detectron2_v0.6": _ratio(iou_sum, (union > 0).sum()),
        "fwIoU": _ratio((iou * labelled)[present].sum(), labelled.sum()),
        "mACC": _ratio(accuracy[present].sum(), num_present),
        "pACC": _ratio(correct.sum(), labelled.sum()),
        "zero_iou_share": _ratio((iou[present] == 0).sum(), num_present),
    }
    for group, members in (groups or {}).items():
        inside = np.isin(names, list(members)) & present
        summary[f"mIoU-{group}"] = _ratio(iou[inside].sum(), inside.sum())
    per_class = {f"IoU-{name}": value for name, value in zip(names, iou, strict=True)}
    per_class |= {f"ACC-{name}": value for name, value in zip(names, accuracy, strict=True)}
    return {key: 100.0 * float(value) for key, value in {**summary, **per_class}.items()}


def _names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    names = [str(index) for index in range(num_classes)] if class_names is None else list(class_names)
    if len(names) != num_classes:
        raise ValueError(
            f"{len(names)} class names for a matrix of {num_classes} classes; pass the dataset's class list"
        )
    if len(set(names)) != num_classes:
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"class names occur more than once: {', '.join(twice)}; rename them")
    return names


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    """Return part / whole, NaN where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    result: Floats = np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)
    return result
