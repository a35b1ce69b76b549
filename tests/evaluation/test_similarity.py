"""Similarity of label sets and correlation with IoU, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from san.evaluation.similarity import compare_sets, correlate, read_per_class


def unit(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_directions_on_a_circle():
    """A at 0 and 30 degrees; B at 0, 40 and 100: the nearest are 0 and 10 degrees away, and back 0, 10 and 70."""
    found = compare_sets(unit(0, 30), unit(0, 40, 100))
    assert found.nearest == (0, 1)
    assert found.similarity == pytest.approx((1, cosine(10)), abs=1e-6)
    assert found.mean_there == pytest.approx((1 + cosine(10)) / 2, abs=1e-6)
    assert found.least_there == pytest.approx(cosine(10), abs=1e-6)
    assert found.mean_back == pytest.approx((1 + cosine(10) + cosine(70)) / 3, abs=1e-6)
    assert found.least_back == found.hausdorff == pytest.approx(cosine(70), abs=1e-6)
    assert found.mean_hausdorff == found.mean_back


def test_it_is_a_hausdorff_distance():
    """Half of the squared Euclidean distance: |a - b|^2 = 2 (1 - s) for unit vectors."""
    generator = torch.manual_seed(0)
    ours, theirs = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (7, 11))
    distances = torch.cdist(ours, theirs)
    distance = float(max(distances.min(dim=1).values.max(), distances.min(dim=0).values.max()))
    found, back = compare_sets(ours, theirs), compare_sets(theirs, ours)
    assert 1 - found.hausdorff == pytest.approx(distance**2 / 2, abs=1e-6)
    assert found.hausdorff == pytest.approx(back.hausdorff) and found.mean_hausdorff == pytest.approx(
        back.mean_hausdorff
    )
    same = compare_sets(ours, ours)
    assert same.nearest == tuple(range(7)) and same.hausdorff == pytest.approx(1, abs=1e-6)


def test_correlation_by_hand():
    """Deviations (-2, -1, 0, 3) and (-3, 1, 1, 1): 8 of sqrt(14 * 12). Ranks: (0, 1, 2, 3) and (0, 2, 2, 2)."""
    found = correlate([1.0, 2.0, 3.0, 6.0, 9.0], [10.0, 50.0, 50.0, 50.0, math.nan])
    assert found.count == 4
    assert found.pearson == pytest.approx(8 / math.sqrt(14 * 12))
    assert found.spearman == pytest.approx(3 / math.sqrt(5 * 3))


def test_correlation_that_is_not_defined():
    assert correlate([1.0, 2.0], [1.0, 2.0]).pearson is None
    constant = correlate([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert constant.count == 3 and constant.pearson is None and constant.spearman is None


def test_an_invalid_table_is_refused(tmp_path):
    path = tmp_path / "per_class.csv"
    with pytest.raises(FileNotFoundError, match="give the per_class.csv of an evaluation"):
        read_per_class(path)
    for text, message in {
        "a,b\n1,2\n": "no rows with the columns class and IoU",
        "": "no rows",
        "class,IoU\ncat,1\ncat,2\n": "row 3: the class is 'cat'; give each class one row",
        "class,IoU\ncat,high\n": "row 2: the IoU is 'high'",
        "class,IoU\ncat,101\n": "row 2: the IoU is '101'",
        "class,IoU\ncat\n": "row 2: the IoU is None",
    }.items():
        path.write_text(text, encoding="utf-8")
        if text.endswith("cat\n"):
            assert math.isnan(read_per_class(path)["cat"])
            continue
        with pytest.raises(ValueError, match=message):
            read_per_class(path)
    path.write_bytes(b"class,IoU\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        read_per_class(path)
