"""Maps the pixel values of label files to class indices while the files are read; no file is rewritten."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from san.io.errors import excerpt, listed

Array = npt.NDArray[Any]

MAX_VALUE = 65535
"""Largest pixel value of a label map: 16 bits."""


@dataclass(frozen=True)
class LabelMapping:
    """A mapping from the pixel values of label files to class indices.

    Attributes:
        indices: pairs (pixel value, class index or ignore label), each pixel value once.
        ignore_label: value of pixels without a class, in the files and in the result; unchanged unless `indices` maps
            it.
        unmapped: how other values are treated: "ignore" maps them to `ignore_label`, "refuse" raises an error.

    Raises:
        ValueError: a pixel value is out of range or given twice, or `unmapped` is something else.
    """

    indices: tuple[tuple[int, int], ...]
    ignore_label: int
    unmapped: Literal["refuse", "ignore"] = "refuse"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.unmapped not in ("refuse", "ignore"):
            raise ValueError(f"unmapped is {excerpt(self.unmapped)}; set it to refuse or ignore")
        seen: set[int] = set()
        for value, _ in self.indices:
            if not 0 <= value <= MAX_VALUE:
                raise ValueError(
                    f"label_mapping holds the pixel value {excerpt(value)}; pixel values are 0..{MAX_VALUE}"
                )
            if value in seen:
                raise ValueError(f"label_mapping holds the pixel value {value} twice; remove one")
            seen.add(value)

    def apply(self, raw: Array, source: str = "the label map") -> Array:
        """Map the values of a label map to class indices and the ignore label.

        Args:
            raw: (H, W) integers, as stored.
            source: file, for the message.

        Returns:
            (H, W) int32.

        Raises:
            ValueError: the label map contains unmapped values and `unmapped` is "refuse".
        """
        indices = self._look_up(raw)  # (H, W), −1 where not mapped
        wrong = indices < 0
        if self.unmapped == "refuse" and wrong.any():
            values = np.unique(raw[wrong]).tolist()
            raise ValueError(
                f"{source} holds the value {listed(values, 5)}, which label_mapping does not map; add it there, "
                "or set unmapped to ignore"
            )
        indices[wrong] = self.ignore_label
        return indices

    def unmapped_values(self, raw: Array) -> list[int]:
        """Return the distinct values of a label map that are neither in `indices` nor the ignore label."""
        return [int(value) for value in np.unique(raw[self._look_up(raw) < 0])]

    def _look_up(self, raw: Array) -> Array:
        """Return class index or ignore label per pixel, −1 for unmapped values; a copy, (H, W) int32."""
        outside = np.uint32(MAX_VALUE + 1)  # a separate type, because MAX_VALUE may not fit that of the labels
        found: Array = self._table[np.where((raw < 0) | (raw > MAX_VALUE), outside, raw)]
        return found

    @cached_property
    def _table(self) -> Array:
        """Return the table of `_look_up`, (MAX_VALUE + 2,) int32; the last entry is for values out of range."""
        table = np.full(MAX_VALUE + 2, -1, dtype=np.int32)
        table[self.ignore_label] = self.ignore_label
        for value, index in self.indices:
            table[value] = index
        return table
