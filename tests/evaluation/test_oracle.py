"""Errors of masks and of names, in closed form on 2 proposals, 3 classes and 4 x 4 pixels."""

from __future__ import annotations

import gc
import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from san.evaluation import ConfusionMatrix, metrics
from san.evaluation.oracle import OracleCounts, Proposals, overlaps, proposals_of, segment_names
from san.evaluation.oracle_report import confusions, oracle_figures
from san.postprocess import Geometry, resized_masks, semantic_labels

NAMES = ["a", "b", "c"]
TRUTH = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 255, 255]], np.uint8)  # a: 8, b: 6, c is absent
UPPER, LAST = torch.full((4, 4), -20.0), torch.full((4, 4), -20.0)
UPPER[:3], LAST[3:] = 20.0, 20.0  # 12 judged pixels: all of a, 4 of b; and 2 judged pixels, both of b
WRONG = ((0.1, 0.2, 0.6, 0.1), (0.6, 0.1, 0.1, 0.2))  # the upper one is called c, the last one a
RIGHT = ((0.6, 0.2, 0.1, 0.1), (0.1, 0.6, 0.1, 0.2))


def proposals(masks: list[torch.Tensor], probs: tuple[tuple[float, ...], ...]) -> Proposals:
    return Proposals(torch.stack(masks), torch.tensor(probs).log(), Geometry((4, 4), (4, 4), (4, 4)))


def counted(found: Proposals, truth: np.ndarray = TRUTH, num_classes: int = 3) -> OracleCounts:
    counts = OracleCounts(num_classes, 255)
    counts.update(found, truth)
    return counts


def plain_of(found: Proposals, truth: np.ndarray = TRUTH) -> ConfusionMatrix:
    matrix = ConfusionMatrix(3, 255)
    matrix.update(semantic_labels(found.mask_logits, found.class_logits, found.geometry).numpy(), truth)
    return matrix


def test_every_figure_where_all_names_are_wrong() -> None:
    found = proposals([UPPER, LAST], WRONG)
    counts, plain = counted(found), plain_of(found)
    assert plain.counts.tolist() == [[0, 0, 8], [2, 0, 4], [0, 0, 0]]
    assert counts.true_names.counts.tolist() == [[8, 0, 0], [4, 2, 0], [0, 0, 0]]  # upper is a, last is b
    assert counts.true_masks.counts.tolist() == [[0, 0, 8], [6, 0, 0], [0, 0, 0]]  # a is called c, b is called a
    assert counts.best_pixels.tolist() == [[8, 12], [2, 6], [0, 0]]  # last has the higher IoU with b: 2/6 > 4/14
    assert counts.segments.tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    figures = oracle_figures(plain, counts, NAMES, {"first": ["a"]})
    assert figures["mIoU"] == pytest.approx(
        {"plain": 0, "true_masks": 0, "true_names": 100 * (8 / 12 + 2 / 6) / 2, "best_proposals": 50}
    )
    assert figures["mIoU-first"] == pytest.approx(
        {"plain": 0, "true_masks": 0, "true_names": 100 * 8 / 12, "best_proposals": 100 * 8 / 12}
    )
    assert figures["zero_iou_classes"] == {
        "plain": ["a", "b"], "true_masks": ["a", "b"], "true_names": [], "best_proposals": [],
    }  # fmt: skip
    segments = figures["segments"]
    assert (segments["recall_50"], segments["recall_75"], segments["named_right"]) == (50, 0, 0)
    absent = figures["classes"][2]
    assert absent["label_pixels"] == 0
    assert all(math.isnan(value) for value in [*absent["IoU"].values(), absent["recall_50"], absent["named_right"]])
    pairs = [(each.truth, each.prediction, each.pixels, each.pixels_true_masks) for each in confusions(
        plain, counts.true_masks, NAMES)]  # fmt: skip
    assert pairs == [("a", "c", 8, 8), ("b", "c", 4, 0), ("b", "a", 2, 6)]
    first = confusions(plain, counts.true_masks, NAMES)[0]
    assert (first.share_of_truth, first.share_of_errors) == pytest.approx((100, 100 * 8 / 14))


def test_right_names_leave_the_errors_of_masks() -> None:
    found = proposals([UPPER, LAST], RIGHT)
    figures = oracle_figures(plain_of(found), counted(found), NAMES)
    assert figures["mIoU"]["true_masks"] == 100
    assert figures["mIoU"]["plain"] == figures["mIoU"]["true_names"] == pytest.approx(50)
    assert figures["segments"]["named_right"] == figures["segments"]["named_right_recalled_50"] == 100


def test_true_names_and_best_proposals_do_not_depend_on_names() -> None:
    rng = torch.Generator().manual_seed(0)
    masks, logits = 4 * torch.randn(5, 4, 4, generator=rng), torch.randn(5, 4, generator=rng)
    one = Proposals(masks, logits, Geometry((4, 4), (4, 4), (4, 4)))
    other = replace(one, class_logits=logits[:, [2, 0, 1, 3]])  # "no object" stays
    first, second = counted(one), counted(other)
    assert np.array_equal(first.true_names.counts, second.true_names.counts)
    assert np.array_equal(first.best_pixels, second.best_pixels)
    assert np.array_equal(first.segments[:, :3], second.segments[:, :3])
    assert not np.array_equal(first.true_masks.counts, second.true_masks.counts)


def test_true_masks_do_not_depend_on_the_size_of_a_mask() -> None:
    """A proposal that is much too small or too large names its segment all the same."""
    truth = np.repeat([[0, 0, 1, 1]], 4, axis=0).astype(np.uint8)
    left = torch.where(torch.from_numpy(truth == 0), 20.0, -20.0)
    small, large = -left, -left
    small[1:], large = -20.0, torch.cat([large[:, 2:3], large[:, 1:]], dim=1)  # 2 of 8 pixels; 12 with 4 of the left
    for right, iou in ((small, 2 / 8), (large, 8 / 12)):
        found = proposals([left, right], RIGHT)
        figures = oracle_figures(plain_of(found, truth), counted(found, truth), NAMES)
        assert figures["mIoU"]["true_masks"] == 100
        assert figures["mIoU"]["best_proposals"] == pytest.approx(50 + 50 * iou)


def test_a_copy_that_the_network_drops_names_nothing() -> None:
    """The copy fits better, but is no object to the network."""
    copy = (0.005, 0.001, 0.004, 0.99)
    exact = torch.where(torch.from_numpy(TRUTH == 1), 20.0, -20.0)
    counts = counted(proposals([UPPER, LAST, exact], (*RIGHT, copy)))
    assert counts.segments[1].tolist() == [1, 1, 1, 1, 1]  # found by the copy, named by the other
    assert counts.best_pixels[1].tolist() == [6, 6]


def test_true_names_keep_the_scores() -> None:
    """Of overlapping proposals the one with the higher class probability wins, not the one with the sharper mask."""
    truth = np.repeat([[0, 0, 1, 1]], 4, axis=0).astype(np.uint8)
    sharp, sure = torch.full((4, 4), -20.0), torch.full((4, 4), -20.0)
    sharp[:, :3], sure[:, 2:] = 20.0, 0.5  # meet in the third column: 1 * 0.1 < 0.62 * 0.9
    counts = counted(proposals([sharp, sure], ((0.05, 0.05, 0.0, 0.9), (0.8, 0.05, 0.05, 0.1))), truth)
    assert counts.true_names.counts.tolist() == [[8, 0, 0], [0, 8, 0], [0, 0, 0]]


def test_an_iou_of_exactly_one_half_is_recalled() -> None:
    half = torch.full((4, 4), -20.0)
    half[:, :2] = 20.0
    assert counted(proposals([half], RIGHT[:1]), np.zeros((4, 4), np.uint8)).segments[0].tolist() == [1, 1, 0, 1, 1]


def test_segment_names_by_hand() -> None:
    """Soft IoU (0.5 and 0.4) times what is not "no object" (0.5 and 0.9)."""
    probs = torch.tensor([[0.5, 0.0, 0.5], [0.1, 0.8, 0.1]])
    soft = torch.tensor([[5.0], [4.0]], dtype=torch.float64)  # of a segment of 10 pixels, nothing outside
    assert segment_names(probs, soft, torch.tensor([10])).tolist() == [1]


def test_ignored_pixels_count_nowhere() -> None:
    changed = LAST.clone()
    changed[3, 2:] = -20.0
    one, other = counted(proposals([UPPER, LAST], WRONG)), counted(proposals([UPPER, changed], WRONG))
    assert all(np.array_equal(values, other.counts[name]) for name, values in one.counts.items())
    assert one.true_names.counts.sum() == one.true_masks.counts.sum() == (TRUTH != 255).sum()
    negative = OracleCounts(3, -1)
    negative.update(proposals([UPPER, LAST], WRONG), np.where(TRUTH == 255, -1, TRUTH.astype(np.int32)))
    assert all(np.array_equal(values, negative.counts[name]) for name, values in one.counts.items())
    nothing = counted(proposals([UPPER, LAST], WRONG), np.full((4, 4), 255, np.uint8))
    assert not any(values.any() for values in nothing.counts.values())
    figures = oracle_figures(ConfusionMatrix(3, 255), nothing, NAMES)
    assert math.isnan(figures["mIoU"]["true_names"]) and math.isnan(figures["mIoU"]["best_proposals"])


def random_case(seed: int, size: tuple[int, int] = (37, 53)) -> tuple[Proposals, np.ndarray]:
    rng = torch.Generator().manual_seed(seed)
    masks, classes = 6 * torch.randn(7, 5, 6, generator=rng), 2 * torch.randn(7, 4, generator=rng)
    found = Proposals(masks, classes, Geometry((40, 48), (38, 45), size))
    truth = np.random.default_rng(seed).integers(0, 3, (4, 5)).repeat(10, 0).repeat(11, 1)[: size[0], : size[1]]
    return found, np.where(truth == 2, 255, truth) if seed % 3 == 0 else truth


def test_bands_give_what_the_whole_image_gives() -> None:
    found, truth = random_case(1)
    probs = resized_masks(found.mask_logits, found.geometry).sigmoid().double()
    inside = torch.stack([torch.from_numpy(truth == index) for index in range(3)]).double()
    for shrink in (1, 2**12, 2**30):
        soft, hard = overlaps(replace(found, shrink=shrink), torch.from_numpy(truth), 3)
        assert torch.allclose(soft, torch.einsum("qhw,phw->qp", probs, inside), rtol=1e-5)
        assert torch.equal(hard, torch.einsum("qhw,phw->qp", (probs > 0.5).double(), inside))


def test_workers_add_up() -> None:
    together, workers = OracleCounts(3, 255), [OracleCounts(3, 255) for _ in range(2)]
    for seed in range(6):
        together.update(*random_case(seed))
        workers[seed % 2].update(*random_case(seed))
    workers[0].merge(workers[1].counts)
    assert all(np.array_equal(values, workers[0].counts[name]) for name, values in together.counts.items())
    assert together.segments[:, 0].sum() == sum(len(np.unique(t[t != 255])) for _, t in map(random_case, range(6)))


ODD: dict[str, Any] = {
    "missing": None,
    "other classes": np.zeros((4, 5), np.int64),
    "fractions": np.zeros((3, 5)),
    "negative": np.full((3, 5), -1, np.int64),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_counts_are_refused_and_nothing_is_added(odd: str) -> None:
    counts, full = OracleCounts(3, 255), counted(proposals([UPPER, LAST], WRONG))
    with pytest.raises(ValueError, match="'segments' of an error analysis are none of 3 classes"):
        counts.merge({**full.counts, "segments": ODD[odd]})
    assert not any(values.any() for values in counts.counts.values())


def test_misfits_are_refused_and_nothing_is_counted() -> None:
    counts, found = OracleCounts(3, 255), proposals([UPPER, LAST], WRONG)
    with pytest.raises(ValueError, match=r"x.png are for 3 classes at \(4, 4\), but its label map has 3 at \(2, 4\)"):
        counts.update(found, TRUTH[:2], file_name="x.png")
    with pytest.raises(ValueError, match=r"label map of x.png holds the value 7 but only 0..2"):
        counts.update(found, np.where(TRUTH == 1, 7, TRUTH), file_name="x.png")
    with pytest.raises(ValueError, match="for 3 classes .* has 5 at"):
        counted(found, num_classes=5)
    assert not any(values.any() for values in counts.counts.values())
    with pytest.raises(ValueError, match="needs the model's proposals, but its output has none"):
        proposals_of({"sem_seg_labels": torch.zeros(1, 1)})


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    counts = OracleCounts(3, 255)
    counts.update(*random_case(0))
    size = sum(values.nbytes for values in counts.counts.values())
    gc.collect()
    gc.freeze()  # else every collection goes through all that earlier tests have imported
    tracemalloc.start()
    try:
        held = []
        for seed in range(40):
            counts.update(*random_case(seed))
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert held[-1] - held[4] < 100_000  # the label maps of 35 images, 37 x 53 int64, have 550 kB
    assert sum(values.nbytes for values in counts.counts.values()) == size


def test_true_masks_reach_100_where_every_name_is_right() -> None:
    """With random masks, if each segment's proposal has the name."""
    found, truth = random_case(2)
    logits = torch.full((7, 4), -20.0)
    logits[:, 1] = 20.0  # everything is b
    counts = counted(replace(found, class_logits=logits), np.where(truth == 255, 255, 1))
    assert metrics(counts.true_masks)["IoU-1"] == 100
