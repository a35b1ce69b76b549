from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from san import postprocess
from san.postprocess import Geometry, labels_and_scores, resized_masks, semantic_labels, semantic_scores

GEOMETRY = Geometry((96, 128), (75, 101), (150, 60))


def random_case(num_queries: int = 7, num_classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask_logits = 4 * torch.randn(num_queries, 6, 8, generator=generator)
    return mask_logits, 3 * torch.randn(num_queries, num_classes + 1, generator=generator)


def test_scores_are_the_definition() -> None:
    """docs/method.md#7.2, written down directly."""
    mask_logits, class_logits = random_case()
    masks = F.interpolate(mask_logits[None], GEOMETRY.padded_size, mode="bilinear")[..., :75, :101]
    masks = F.interpolate(masks, GEOMETRY.output_size, mode="bilinear")[0].sigmoid()
    expected = torch.einsum("qc,qhw->chw", class_logits.softmax(-1)[:, :-1], masks)
    scores = semantic_scores(mask_logits, class_logits, GEOMETRY)
    assert scores.shape == (5, 150, 60)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("band_values", [1, 2000, 2**24])
def test_labels_are_the_argmax_of_scores(monkeypatch: pytest.MonkeyPatch, band_values: int) -> None:
    """Whatever the size of a band, down to a single row."""
    mask_logits, class_logits = random_case()
    expected = semantic_scores(mask_logits, class_logits, GEOMETRY).argmax(0)
    monkeypatch.setattr(postprocess, "_BAND_VALUES", band_values)
    labels = semantic_labels(mask_logits, class_logits, GEOMETRY)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, expected)
    assert labels.unique().numel() > 2


def test_labels_never_hold_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """No intermediate tensor has more values than a band; all scores would be 130 times that."""
    monkeypatch.setattr(postprocess, "_BAND_VALUES", 2**18)
    mask_logits, class_logits = random_case(num_queries=2, num_classes=847)
    with Largest() as largest:
        labels = semantic_labels(mask_logits, class_logits, Geometry((96, 128), (96, 128), (200, 200)))
    assert labels.shape == (200, 200)
    assert largest.numel <= postprocess._BAND_VALUES


class Largest(TorchDispatchMode):
    """Notes the number of values of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("num_classes", [5, 60])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, num_classes: int) -> None:
    mask_logits, class_logits = random_case(num_classes=num_classes)
    labels, best = labels_and_scores(mask_logits, class_logits, GEOMETRY)
    scores = semantic_scores(mask_logits, class_logits, GEOMETRY)
    monkeypatch.setattr(postprocess, "_BLOCK_SIDE", 32)
    blocks = labels_and_scores(mask_logits, class_logits, GEOMETRY)
    assert torch.equal(blocks[0], labels)
    torch.testing.assert_close(blocks[1], best)
    torch.testing.assert_close(semantic_scores(mask_logits, class_logits, GEOMETRY), scores)


@pytest.mark.parametrize("output_size", [(1, 300_000), (300_000, 1)])
def test_lines_take_no_more_memory_than_their_result(output_size: tuple[int, int]) -> None:
    """A matrix of the whole side, or the masks stretched along it, would have millions of values."""
    mask_logits, class_logits = random_case(num_queries=20)
    geometry = Geometry((96, 128), (96, 128), output_size)
    with Largest() as largest:
        labels, _ = labels_and_scores(mask_logits, class_logits, geometry)
    assert labels.shape == output_size
    assert labels.unique().numel() > 2
    assert largest.numel <= max(300_000, 2 * postprocess._CACHED_VALUES)


def test_of_equal_scores_the_first_class_wins() -> None:
    mask_logits, class_logits = random_case(num_classes=3)
    class_logits[:, 2] = class_logits[:, 1] = class_logits[:, 0] + 2
    assert (semantic_labels(mask_logits, class_logits, GEOMETRY) == 1).all()


def test_background_and_absent_masks_do_not_count() -> None:
    mask_logits = torch.stack([torch.full((2, 2), 50.0), torch.full((2, 2), 50.0), torch.full((2, 2), -50.0)])
    class_logits = torch.tensor([[0.0, 0.0, 90.0], [0.0, 5.0, 0.0], [90.0, 0.0, 0.0]])
    geometry = Geometry((32, 32), (32, 32), (4, 4))
    assert (semantic_labels(mask_logits, class_logits, geometry) == 1).all()


def test_permuting_classes_and_queries() -> None:
    mask_logits, class_logits = random_case()
    scores = semantic_scores(mask_logits, class_logits, GEOMETRY)
    classes, queries = torch.tensor([3, 1, 4, 0, 2]), torch.tensor([6, 0, 5, 2, 1, 4, 3])
    permuted = class_logits[:, [*classes, 5]]
    torch.testing.assert_close(semantic_scores(mask_logits, permuted, GEOMETRY), scores[classes])
    torch.testing.assert_close(semantic_scores(mask_logits[queries], class_logits[queries], GEOMETRY), scores)


def test_padding_does_not_leak() -> None:
    """Logits of padded pixels away from the border change nothing."""
    mask_logits, class_logits = random_case()
    geometry = Geometry((96, 128), (48, 64), (48, 64))
    changed = mask_logits.clone()
    changed[:, 4:], changed[:, :, 5:] = 1e3, -1e3
    before, after = (semantic_scores(masks, class_logits, geometry) for masks in (mask_logits, changed))
    assert torch.equal(before, after)


def test_half_precision_is_computed_in_float32() -> None:
    mask_logits, class_logits = (tensor.bfloat16() for tensor in random_case())
    expected = semantic_scores(mask_logits.float(), class_logits.float(), GEOMETRY)
    assert torch.equal(semantic_scores(mask_logits, class_logits, GEOMETRY), expected)


@pytest.mark.parametrize(
    ("masks", "classes", "sizes", "message"),
    [
        ((1, 7, 6, 8), (7, 6), {}, "one image of the batch"),
        ((7, 6, 8), (6, 6), {}, r"\(7, 6, 8\) and class_logits \(6, 6\)"),
        ((7, 6, 8), (7, 1), {}, "no class but the background"),
        ((7, 6, 8), (7, 6), {"image_size": (97, 101)}, "exceeds padded_size"),
        ((7, 6, 8), (7, 6), {"output_size": (0, 10)}, "must be positive"),
    ],
)
def test_misfits_are_refused(masks: tuple[int, ...], classes: tuple[int, ...], sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        semantic_labels(torch.zeros(masks), torch.zeros(classes), replace(GEOMETRY, **sizes))


def test_labels_and_scores_are_those_of_the_definition() -> None:
    mask_logits, class_logits = random_case()
    scores = semantic_scores(mask_logits, class_logits, GEOMETRY)
    labels, best = labels_and_scores(mask_logits, class_logits, GEOMETRY)
    assert torch.equal(labels, semantic_labels(mask_logits, class_logits, GEOMETRY))
    assert torch.equal(best, scores.amax(0))
    assert best.dtype == torch.float32


@pytest.mark.parametrize("band_values", [1, 2**24])
def test_none_by_threshold_and_by_the_background(monkeypatch: pytest.MonkeyPatch, band_values: int) -> None:
    mask_logits, class_logits = random_case()
    scores = semantic_scores(mask_logits, class_logits, GEOMETRY)
    moved = class_logits[:, [5, 1, 2, 3, 4, 0]]  # the background's score, read where a class's is
    background = semantic_scores(mask_logits, moved, GEOMETRY)[0]
    monkeypatch.setattr(postprocess, "_BAND_VALUES", band_values)
    threshold = scores.amax(0).median().item()
    expected = scores.argmax(0)
    for kwargs, none in (
        ({"threshold": threshold}, scores.amax(0) < threshold),
        ({"none_of_these": True}, background > scores.amax(0)),
        (
            {"threshold": threshold, "none_of_these": True},
            (background > scores.amax(0)) | (scores.amax(0) < threshold),
        ),
    ):
        labels, best = labels_and_scores(mask_logits, class_logits, GEOMETRY, **kwargs)
        assert 0 < none.float().mean() < 1
        assert torch.equal(labels, expected.masked_fill(none, -1))
        torch.testing.assert_close(best, scores.amax(0))


def test_resized_masks_are_the_definition() -> None:
    mask_logits, _ = random_case()
    masks = F.interpolate(mask_logits[None], GEOMETRY.padded_size, mode="bilinear")[..., :75, :101]
    masks = F.interpolate(masks, GEOMETRY.output_size, mode="bilinear")[0]
    torch.testing.assert_close(resized_masks(mask_logits, GEOMETRY), masks, rtol=1e-5, atol=1e-5)
