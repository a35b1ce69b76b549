"""From mask and class logits to per-class scores or a label map (method.md 7).

Legend: Q queries, C classes, (h_s, w_s) side grid, (H, W) requested output; a band is a run of output rows.

Both resizes of method.md 7.1 are linear and act on rows and columns separately, so each axis is one small matrix, and
any band of output rows can be made alone: memory stays bounded whatever the output size and the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_BAND_VALUES = 2**24  # mask probabilities and scores held at a time: 64 MB in float32


def semantic_scores(
    mask_logits: Tensor,
    class_logits: Tensor,
    *,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Tensor:
    """Score of every class at every pixel: sum over queries of softmax(class) * sigmoid(mask), background dropped.

    Args:
        mask_logits: (Q, h_s, w_s), before the sigmoid.
        class_logits: (Q, C+1), the last column "no object".
        padded_size: (height, width) of the padded batch that went into the network.
        image_size: (height, width) of this image inside it, at the top left.
        output_size: (height, width) of the result.

    Returns:
        (C, H, W) float32.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    bands = _score_bands(mask_logits, class_logits, padded_size, image_size, output_size)
    return torch.cat(list(bands), dim=1)


def semantic_labels(
    mask_logits: Tensor,
    class_logits: Tensor,
    *,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Tensor:
    """Class of every pixel: the argmax of `semantic_scores`, without ever holding C x H x W scores.

    Args:
        mask_logits: (Q, h_s, w_s), before the sigmoid.
        class_logits: (Q, C+1), the last column "no object".
        padded_size: (height, width) of the padded batch that went into the network.
        image_size: (height, width) of this image inside it, at the top left.
        output_size: (height, width) of the result.

    Returns:
        (H, W) int64; of equal scores the first class wins, as in `torch.argmax`.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    bands = _score_bands(mask_logits, class_logits, padded_size, image_size, output_size)
    return torch.cat([scores.argmax(dim=0) for scores in bands])


def _score_bands(
    mask_logits: Tensor,
    class_logits: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Iterator[Tensor]:
    """Scores (C, rows, W) of one band of output rows after the other."""
    _check(mask_logits, class_logits, padded_size, image_size, output_size)
    mask_logits = mask_logits.float()
    class_probs = class_logits.float().softmax(dim=-1)[:, :-1]  # (Q, C)
    rows, columns = (
        _resize_matrix(grid, padded, image, output, mask_logits.device)
        for grid, padded, image, output in zip(mask_logits.shape[1:], padded_size, image_size, output_size, strict=True)
    )  # (H, h_s), (W, w_s)
    num_rows = max(1, _BAND_VALUES // (sum(class_probs.shape) * output_size[1]))
    for band in rows.split(num_rows):
        mask_probs = (band @ mask_logits @ columns.T).sigmoid()  # (Q, rows, W)
        yield torch.einsum("qc,qhw->chw", class_probs, mask_probs)


def _resize_matrix(grid: int, padded: int, image: int, output: int, device: torch.device) -> Tensor:
    """(output, grid): linear to the padded length, cut to the image, linear to the output length, along one axis."""
    basis = torch.eye(grid, device=device)[None]  # (1, grid, grid)
    basis = F.interpolate(basis, size=padded, mode="linear", align_corners=False)[..., :image]
    return F.interpolate(basis, size=output, mode="linear", align_corners=False)[0].T


def _check(
    mask_logits: Tensor,
    class_logits: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> None:
    if mask_logits.ndim != 3 or class_logits.ndim != 2 or len(mask_logits) != len(class_logits):
        raise ValueError(
            f"mask_logits {tuple(mask_logits.shape)} and class_logits {tuple(class_logits.shape)} must be "
            "(Q, h_s, w_s) and (Q, C+1) of one image; take one image of the batch"
        )
    if class_logits.shape[1] < 2:
        raise ValueError("class_logits has no class but the background; give at least one class name")
    if any(image > padded for image, padded in zip(image_size, padded_size, strict=True)):
        raise ValueError(f"image_size {tuple(image_size)} exceeds padded_size {tuple(padded_size)}; were they swapped?")
    if min(*image_size, *output_size) < 1:
        raise ValueError(f"image_size {tuple(image_size)} and output_size {tuple(output_size)} must be positive")
