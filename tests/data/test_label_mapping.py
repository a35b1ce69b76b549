from __future__ import annotations

import numpy as np
import pytest

from san.data.label_mapping import LabelMapping


def test_values_become_indices() -> None:
    mapping = LabelMapping(((10, 1), (0, 255), (300, 0), (7, 1)), ignore_label=255)
    raw = np.array([[10, 0, 300], [255, 7, 10]], np.int32)
    mapped = mapping.apply(raw)
    assert mapped.tolist() == [[1, 255, 0], [255, 1, 1]]
    assert mapped.dtype == np.int32
    assert raw[0, 0] == 10  # the array given is not changed


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_labels_may_be_of_any_integer_type(dtype: str) -> None:
    """Whatever NumPy makes of an integer that the type cannot hold; not all releases make the same of it."""
    mapping = LabelMapping(((7, 1),), ignore_label=255, unmapped="ignore")
    raw = np.array([[7, 8, np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype)
    assert mapping.apply(raw).tolist() == [[1, 255, 255, 255]]


def test_other_values_are_refused_or_ignored() -> None:
    raw = np.array([[1, 2, 3, 70000, -1, 9]], np.int32)
    strict = LabelMapping(((1, 0),), ignore_label=9)
    with pytest.raises(ValueError, match=r"a\.png holds the value -1, 2, 3, 70000, which label_mapping does not map"):
        strict.apply(raw, source="a.png")
    assert strict.unmapped_values(raw) == [-1, 2, 3, 70000]
    assert LabelMapping(((1, 0),), 9, "ignore").apply(raw).tolist() == [[0, 9, 9, 9, 9, 9]]
    with pytest.raises(ValueError, match="and 2 more"):
        strict.apply(np.arange(10, 17))


def test_the_ignore_label_may_be_mapped() -> None:
    assert LabelMapping(((255, 1),), ignore_label=255).apply(np.array([[255]])).tolist() == [[1]]


def test_wrong_tables() -> None:
    with pytest.raises(ValueError, match=r"pixel value 65536; pixel values are 0\.\.65535"):
        LabelMapping(((65536, 0),), 255)
    with pytest.raises(ValueError, match="pixel value 3 twice"):
        LabelMapping(((3, 0), (3, 1)), 255)
    with pytest.raises(ValueError, match="set it to refuse or ignore"):
        LabelMapping(((3, 0),), 255, "drop")  # type: ignore[arg-type]
