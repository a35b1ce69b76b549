"""Measures how similar the names of two label sets are for a text encoder.

A and B are the unit text embeddings of two label sets; a in A and b in B are classes; s(a, b) = a · b is the cosine
similarity.

- nearest(a, B) = max over b of s(a, b): how well B covers the name a.
- mean(A, B) = mean over a of nearest(a, B); least(A, B) = min over a of nearest(a, B).
- hausdorff(A, B) = min(least(A, B), least(B, A)). It is 1 - d_H, where d_H is the Hausdorff distance of the two sets
  under the distance 1 - s. It is symmetric; one name without a counterpart determines it.
- mean_hausdorff(A, B) = min(mean(A, B), mean(B, A)), from the modified Hausdorff distance, which takes means.

The means are those of M.-P. Dubuisson and A. K. Jain, A modified Hausdorff distance for object matching, ICPR 1994. See
docs/analyze.md.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from san.io.errors import excerpt

Floats = npt.NDArray[np.float64]
_COLUMNS = ("class", "IoU")
_FEWEST = 3
"""Minimum number of classes for a correlation."""


@dataclass(frozen=True)
class SetSimilarity:
    """The similarity of two label sets; see the module for the symbols.

    Attributes:
        nearest: for each class of A, the index in B of the nearest one.
        similarity: for each class of A, nearest(a, B).
        mean_there, least_there: mean(A, B) and least(A, B).
        mean_back, least_back: mean(B, A) and least(B, A).
    """

    nearest: tuple[int, ...]
    similarity: tuple[float, ...]
    mean_there: float
    least_there: float
    mean_back: float
    least_back: float

    @property
    def hausdorff(self) -> float:
        """The symmetric similarity, determined by the worst name."""
        return min(self.least_there, self.least_back)

    @property
    def mean_hausdorff(self) -> float:
        """The symmetric similarity of the means."""
        return min(self.mean_there, self.mean_back)


def compare_sets(ours: Tensor, theirs: Tensor) -> SetSimilarity:
    """Compare label sets A and B.

    Args:
        ours: (|A|, E) embeddings of unit length.
        theirs: (|B|, E) embeddings of unit length, from the same encoder.
    """
    similarity = (ours.double() @ theirs.double().T).clamp(-1, 1)  # (|A|, |B|)
    there, nearest = similarity.max(dim=1)
    back = similarity.max(dim=0).values
    return SetSimilarity(
        tuple(nearest.tolist()),
        tuple(there.tolist()),
        *(float(each) for values in (there, back) for each in (values.mean(), values.min())),
    )


@dataclass(frozen=True)
class Correlation:
    """The correlation of two numbers per class.

    Attributes:
        count: number of classes that have both numbers.
        pearson: correlation of the numbers; None if undefined: fewer than 3 classes, or one of the numbers is constant.
        spearman: correlation of their ranks, with the mean rank for ties; None if undefined.
    """

    count: int
    pearson: float | None
    spearman: float | None


def correlate(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Compute the correlation of two numbers per class, without classes where one is NaN."""
    pairs = np.array([pair for pair in zip(x, y, strict=True) if not any(map(math.isnan, pair))], dtype=np.float64)
    if len(pairs) < _FEWEST:
        return Correlation(len(pairs), None, None)
    return Correlation(
        len(pairs), _pearson(pairs[:, 0], pairs[:, 1]), _pearson(_ranks(pairs[:, 0]), _ranks(pairs[:, 1]))
    )


def read_per_class(path: str | Path) -> dict[str, float]:
    """Read the IoU of each class in percent from an evaluation's per_class.csv; NaN for absent classes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give the per_class.csv of an evaluation (`san eval`)")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}); give an evaluation's per_class.csv") from None
    if not rows or not all(column in rows[0] for column in _COLUMNS):
        raise ValueError(f"{path} has no rows with the columns {' and '.join(_COLUMNS)}; give a per_class.csv")
    found: dict[str, float] = {}
    for number, row in enumerate(rows, 2):
        name, text = row["class"], row["IoU"]
        if not name or name in found:
            raise ValueError(f"{path}, row {number}: the class is {excerpt(name)}; give each class one row")
        try:
            value = float(text) if text else math.nan
        except (TypeError, ValueError):
            value = math.inf
        if not (math.isnan(value) or 0 <= value <= 100):
            raise ValueError(f"{path}, row {number}: the IoU is {excerpt(text)}; give percent, or nothing")
        found[name] = value
    return found


def _pearson(x: Floats, y: Floats) -> float | None:
    """Return the correlation coefficient; None if one side is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def _ranks(values: Floats) -> Floats:
    """Return ranks from 0; equal values get their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts + 1) / 2)[inverse]
    return ranks
