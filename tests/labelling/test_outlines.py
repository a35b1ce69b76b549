"""Regions of label maps, and their outlines, which are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from scipy import ndimage

from san.labelling.outlines import joined_ring, region_polygons, rings
from san.labelling.regions import Region, RegionMap, RegionOptions, find_regions


def noisy_labels(sigma: float = 2.0, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Classes 0..3 and none (-1), with islands, holes and pixels that touch at corners."""
    noise = np.random.default_rng(0).normal(size=(5, *size))
    return ndimage.gaussian_filter(noise, (0, sigma, sigma)).argmax(axis=0) - 1


def region_of(mask: np.ndarray) -> Region:
    """The one region of a mask."""
    (region,) = find_regions(np.where(mask, 0, -1), None, 1, RegionOptions()).regions()
    return region


def test_one_region_per_class_or_per_component() -> None:
    labels = np.array([[0, 0, 1, 0], [1, 1, 1, 0], [-1, 0, 7, 0]])
    scores = np.arange(12.0).reshape(3, 4)
    whole = find_regions(labels, scores, 2, RegionOptions())
    assert whole.ids.tolist() == [[1, 1, 2, 1], [2, 2, 2, 1], [0, 1, 0, 1]]
    assert whole.labels.tolist() == [0, 1]
    assert whole.scores.tolist() == pytest.approx([(0 + 1 + 3 + 7 + 9 + 11) / 6, (2 + 4 + 5 + 6) / 4])
    assert not whole.dropped.any()
    parts = list(find_regions(labels, scores, 2, RegionOptions(instances=True)).regions())
    assert [(each.label, each.box, each.area) for each in parts] == [
        (0, (0, 0, 2, 1), 2),
        (0, (3, 0, 1, 3), 3),
        (0, (1, 2, 1, 1), 1),
        (1, (0, 0, 3, 2), 4),
    ]
    assert np.array_equal(parts[3].mask(), labels == 1)


def test_small_components_and_low_scores_are_dropped() -> None:
    labels = np.array([[0, 0, 1, 0], [1, 1, 1, 0], [-1, 0, 7, 0]])
    scores = np.where(labels == 1, 0.2, 0.9)
    kept = find_regions(labels, scores, 2, RegionOptions(min_area=2))
    assert kept.ids.tolist() == [[1, 1, 2, 1], [2, 2, 2, 1], [0, 0, 0, 1]]
    assert np.argwhere(kept.dropped).tolist() == [[2, 1]]
    sure = find_regions(labels, scores, 2, RegionOptions(score_threshold=0.5))
    assert sure.labels.tolist() == [0]
    assert np.array_equal(sure.dropped, labels == 1)
    assert sure.class_map(first=1, none=0, dropped=255).tolist() == [[1, 1, 255, 1], [255, 255, 255, 1], [0, 1, 0, 1]]
    with pytest.raises(ValueError, match="min_area is -1; give a number of pixels"):
        RegionOptions(min_area=-1)
    with pytest.raises(ValueError, match="things are given, but instances is False"):
        RegionOptions(things=(1,))


@pytest.mark.parametrize("labels", [np.full((3, 4), -1), np.full((3, 4), 2)])
def test_a_map_without_regions(labels: np.ndarray) -> None:
    found = find_regions(labels, np.ones(labels.shape), 2, RegionOptions(instances=True, min_area=1))
    assert list(found.regions()) == []
    assert found.class_map(first=0, none=9, dropped=8).tolist() == np.full(labels.shape, 9).tolist()


def test_saved_regions_are_the_same(tmp_path: Path) -> None:
    found = find_regions(noisy_labels(), None, 4, RegionOptions(instances=True, min_area=9))
    found.save(tmp_path / "a.npz")
    again = RegionMap.load(tmp_path / "a.npz")
    for name in ("ids", "labels", "scores", "dropped"):
        assert np.array_equal(getattr(again, name), getattr(found, name), equal_nan=name == "scores")
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        RegionMap.load(tmp_path / "a.npz")


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_polygons_have_exactly_the_pixels_of_the_mask(sigma: float, instances: bool) -> None:
    """In pycocotools with holes joined, and in Shapely with holes."""
    labels = noisy_labels(sigma, (30, 40))
    holes = 0
    for region in find_regions(labels, None, 4, RegionOptions(instances)).regions():
        polygons = region_polygons(region)
        assert all(each.is_valid for each in polygons)
        assert sum(each.area for each in polygons) == region.area
        assert len(polygons) == ndimage.label(region.crop)[1]
        holes += sum(len(each.interiors) for each in polygons)
        flat = [joined_ring(each).ravel().tolist() for each in polygons]
        decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *labels.shape)))
        assert np.array_equal(decoded, region.mask())
    assert holes > 0


def test_corners_of_a_ring() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:5, 2:6] = True
    mask[2:4, 3:5] = False
    (polygon,) = region_polygons(region_of(mask))
    outline, hole = (ring.tolist() for ring in rings(polygon))
    assert sorted(outline) == [[2, 1], [2, 5], [6, 1], [6, 5]]
    assert sorted(hole) == [[3, 2], [3, 4], [5, 2], [5, 4]]
    assert len(joined_ring(polygon)) == 4 + 4 + 2


def test_pixels_that_touch_at_a_corner_are_two_polygons() -> None:
    polygons = region_polygons(region_of(np.eye(2, dtype=bool)))
    assert [each.area for each in polygons] == [1, 1]


def test_tolerance_leaves_out_corners() -> None:
    rows, columns = np.mgrid[:100, :100]
    disc = np.hypot(rows - 50, columns - 50) < 40
    (exact,) = region_polygons(region_of(disc))
    (simple,) = region_polygons(region_of(disc), tolerance=1.0)
    assert len(simple.exterior.coords) < len(exact.exterior.coords) / 3
    assert simple.symmetric_difference(exact).area < 0.03 * exact.area
    picture = Image.new("1", (100, 100))
    ImageDraw.Draw(picture).polygon(joined_ring(simple).ravel().tolist(), fill=1)
    drawn = np.asarray(picture)
    assert (drawn & disc).sum() / (drawn | disc).sum() > 0.95
    with pytest.raises(ValueError, match="tolerance is -1; give a number of pixels"):
        region_polygons(region_of(disc), tolerance=-1)
