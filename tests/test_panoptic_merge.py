"""Merging of queries to segments and instances, against a slow reference written from the definition."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from san import panoptic_merge
from san.panoptic_merge import PanopticMap, PanopticOptions, find_instances, merge_queries
from san.postprocess import Geometry, View, resized_masks

SIZES = [Geometry((32, 40), (32, 40), (32, 40)), Geometry((32, 32), (20, 24), (37, 51))]


def random_view(seed: int, geometry: Geometry, queries: int = 9, classes: int = 4) -> View:
    """Smooth masks that overlap, half of the queries with one sure class."""
    rng = torch.Generator().manual_seed(seed)
    masks = 6 * torch.randn(queries, 5, 6, generator=rng) - 5
    masks[queries // 2] = masks[0] + 0.1  # a duplicate
    logits = torch.randn(queries, classes + 1, generator=rng)
    logits[torch.arange(queries), torch.randint(0, classes + 1, (queries,), generator=rng)] += 5
    logits[queries // 2] = logits[0]
    return View(masks, logits, geometry)


def components_of(mask: np.ndarray) -> list[np.ndarray]:
    """The connected components of a mask, by flooding."""
    left, found = mask.copy(), []
    while left.any():
        start = tuple(np.argwhere(left)[0])
        part, waiting = np.zeros_like(mask), deque([start])
        left[start] = False
        while waiting:
            row, column = waiting.popleft()
            part[row, column] = True
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1] and left[near]:
                    left[near] = False
                    waiting.append(near)
        found.append(part)
    return found


def reference(view: View, things: set[int], options: PanopticOptions) -> list[tuple[np.ndarray, int, float, int]]:
    """(mask, class, score, query) of each segment, from the definition, one query after the other."""
    probs = view.class_logits.softmax(-1).numpy()
    masks = resized_masks(view.mask_logits, view.geometry).sigmoid().numpy()
    none = probs.shape[1] - 1
    kept = [q for q in range(len(probs)) if probs[q].argmax() != none and probs[q].max() >= options.object_threshold]
    products = {q: probs[q].max() * masks[q] for q in kept}
    found: list[tuple[np.ndarray, int, float, int]] = []
    for query in kept:
        won = np.ones(masks[query].shape, bool)
        for other in kept:
            ahead = other < query
            won &= products[query] > products[other] if ahead else products[query] >= products[other]
        label, own = int(probs[query].argmax()), masks[query] > 0.5
        parts = components_of(own) if options.connected and label in things else [own]
        for part in parts:
            inside = part & won
            if inside.any() and inside.sum() / part.sum() >= options.overlap_threshold:
                found.append((inside, label, float(probs[query].max()), query))
    for label in {each[1] for each in found} - things:
        same = [each for each in found if each[1] == label]
        best = max(same, key=lambda each: each[2])
        found = [each for each in found if each[1] != label]
        found.append((np.any([each[0] for each in same], axis=0), label, best[2], best[3]))
    return found


def as_list(found: PanopticMap) -> list[tuple[np.ndarray, int, float, int]]:
    columns = (found.labels.tolist(), found.scores.tolist(), found.queries.tolist())
    return [(found.ids == number, *row) for number, row in enumerate(zip(*columns, strict=True), start=1)]


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("geometry", SIZES)
@pytest.mark.parametrize("seed", range(6))
def test_merging_equals_the_definition(
    seed: int, geometry: Geometry, connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in bands of few rows."""
    options = PanopticOptions([0.0, 0.5, 0.8][seed % 3], [0.3, 0.6][seed % 2], connected)
    view, things = random_view(seed, geometry), {0, 2}
    expected = sorted(reference(view, things, options), key=lambda each: each[0].tobytes())
    for values in (panoptic_merge._BAND_VALUES, 2000):
        monkeypatch.setattr(panoptic_merge, "_BAND_VALUES", values)
        found = merge_queries(view, things, options)
        assert {*np.unique(found.ids).tolist()} - {0} == {*range(1, len(expected) + 1)}
        for mine, theirs in zip(sorted(as_list(found), key=lambda each: each[0].tobytes()), expected, strict=True):
            assert np.array_equal(mine[0], theirs[0])
            assert (mine[1], mine[3]) == (theirs[1], theirs[3])
            assert mine[2] == pytest.approx(theirs[2])


def test_cases_are_not_trivial() -> None:
    """The random cases have several segments, joined stuff and dropped duplicates."""
    views = [random_view(seed, SIZES[0]) for seed in range(6)]
    found = [merge_queries(view, {0, 2}, PanopticOptions(0.5, 0.5)) for view in views]
    kept = [int((view.class_logits.softmax(-1)[:, :-1].amax(1) >= 0.5).sum()) for view in views]
    assert sum(len(each.labels) for each in found) > 12
    assert any(len(each.labels) < count for each, count in zip(found, kept, strict=True))


def by_hand(left: float = 5.0, right: float = 5.0) -> View:
    """Three queries on 4 x 6 pixels: the left and right thirds (class 0), the left third (1), the middle (2)."""
    masks = torch.full((3, 4, 6), -9.0)
    masks[0, :, :2], masks[0, :, 4:], masks[1, :, :2], masks[2, :, 2:4] = left, right, 3.0, 4.0
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 8.0, 0, 0], [0, 0, 9.0, 0]])
    return View(masks, logits, Geometry((4, 6), (4, 6), (4, 6)))


def test_by_hand() -> None:
    whole = merge_queries(by_hand(), {0})
    assert whole.labels.tolist() == [0, 2] and whole.queries.tolist() == [0, 2]
    assert whole.ids[0].tolist() == [1, 1, 2, 2, 1, 1]
    parts = merge_queries(by_hand(), {0}, PanopticOptions(connected=True))
    assert parts.labels.tolist() == [2, 0, 0] and parts.ids[0].tolist() == [2, 2, 1, 1, 3, 3]
    taken = merge_queries(by_hand(left=1.0), {0})  # query 1 wins the left third, half of query 0's mask
    assert taken.labels.tolist() == [1, 2] and taken.ids[0].tolist() == [1, 1, 2, 2, 0, 0]
    half = merge_queries(by_hand(left=1.0), {0}, PanopticOptions(overlap_threshold=0.5))
    assert half.ids[0].tolist() == [2, 2, 3, 3, 1, 1]
    part = merge_queries(by_hand(left=1.0), {0}, PanopticOptions(connected=True))  # a component is judged by itself
    assert part.ids[0].tolist() == [1, 1, 2, 2, 3, 3] and part.labels.tolist() == [1, 2, 0]
    assert len(merge_queries(by_hand(), {0}, PanopticOptions(object_threshold=1.0)).labels) == 0
    for name, value in (("object_threshold", 2.0), ("overlap_threshold", -0.1)):
        with pytest.raises(ValueError, match=rf"panoptic\.{name} is {value}; set it within 0..1"):
            PanopticOptions(**{name: value})


@pytest.mark.parametrize("connected", [False, True])
def test_instances_equal_the_definition(connected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panoptic_merge, "_BAND_VALUES", 5000)
    view, things, limit = random_view(1, SIZES[1]), (0, 3), 11
    probs, expected = view.class_logits.softmax(-1), []
    masks = resized_masks(view.mask_logits, view.geometry).sigmoid().numpy()
    pairs = [(float(probs[query, label]), query, label) for query in range(9) for label in things]
    for score, query, label in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:limit]:
        own = masks[query] > 0.5
        for part in components_of(own) if connected else [own]:
            if part.any():
                expected.append((label, score * masks[query][part].mean(dtype=np.float64), part))
    found = [*find_instances(view, things, connected=connected, limit=limit)]
    assert len(found) == len(expected) > limit - 3
    for mine, theirs in zip(
        sorted(found, key=lambda each: each.score), sorted(expected, key=lambda each: each[1]), strict=True
    ):
        assert mine.label == theirs[0] and mine.score == pytest.approx(theirs[1], rel=1e-5)
        assert np.array_equal(mine.mask, theirs[2])
    assert [*find_instances(view, ())] == []


def test_the_grad_mode_of_the_caller_is_kept() -> None:
    view = random_view(0, SIZES[0])
    view.mask_logits.requires_grad_(), view.class_logits.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in find_instances(view, {0}):
            assert torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        assert merge_queries(view, {0}).ids.dtype == np.int32
    with pytest.raises(ValueError, match="take one image of the batch"):
        merge_queries(View(view.mask_logits[None], view.class_logits[None], view.geometry), {0})
