"""Label maps read at points give what masks give, and the criterion asks the CPU once for all matches."""

from __future__ import annotations

import pytest
import torch

from san.losses import LabelMapTarget, LossConfig, SetCriterion, Target, criterion
from san.losses.targets import LabelMapTargetBatch, MaskTargetBatch, target_batch

CPU = torch.device("cpu")


def label_maps(dtype: torch.dtype, num_images: int = 3) -> list[LabelMapTarget]:
    """Blocky maps of 7 classes on 23 x 31 pixels with ignored ones (255); the second image has none but those."""
    torch.manual_seed(0)
    targets = []
    for index in range(num_images):
        small = torch.randint(0, 7, (6, 8)) if index != 1 else torch.full((6, 8), 255)
        small[0, :3] = 255
        label_map = small.repeat_interleave(4, 0).repeat_interleave(4, 1)[:23, :31]
        present = label_map.unique()
        targets.append(LabelMapTarget(present[present != 255], label_map.to(dtype)))
    return targets


def as_masks(targets: list[LabelMapTarget]) -> list[Target]:
    return [Target(t.labels, t.label_map == t.labels[:, None, None]) for t in targets]


def points_with_borders(*shape: int) -> torch.Tensor:
    """Uniform points, with corners and edges among them, where `grid_sample` reads zeros from outside."""
    points = torch.rand(*shape, 2)
    points.view(-1, 2)[:6] = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0], [0.5, 0], [1 - 1e-7, 0.3]])
    return points


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_values_at_points_equal_those_of_masks(dtype):
    targets = label_maps(dtype)
    maps, masks = LabelMapTargetBatch(targets, CPU), MaskTargetBatch(as_masks(targets), CPU)
    assert maps.counts == masks.counts
    points = points_with_borders(len(targets), 500)
    values = maps.at_shared_points(points)
    assert values.shape == (sum(maps.counts), 500)
    torch.testing.assert_close(values, masks.at_shared_points(points), rtol=0, atol=2e-6)
    images = torch.tensor([0, 0, 2, 2])
    pairs = torch.tensor([1, 0, maps.counts[0], maps.counts[0] + 2])
    points = points_with_borders(4, 300)
    values = maps.at_pair_points(images, pairs, points)
    torch.testing.assert_close(values, masks.at_pair_points(images, pairs, points), rtol=0, atol=2e-6)
    assert 0.05 < values.mean() < 0.5


@pytest.mark.parametrize(("dtype", "label"), [(torch.uint8, 255), (torch.int16, 0), (torch.int64, 2**40)])
def test_a_class_of_the_whole_map_fades_towards_outside(dtype, label):
    """Points outside the map have no class, for any values; half a pixel at the border reads half of it."""
    target = LabelMapTarget(torch.tensor([label]), torch.full((4, 5), label, dtype=torch.int64).to(dtype))
    points = torch.tensor([[0.5, 0.5], [0, 0.5], [1, 1], [0.5, 0]])
    values = LabelMapTargetBatch([target], CPU).at_shared_points(points[None])
    torch.testing.assert_close(values, torch.tensor([[1, 0.5, 0.25, 0.5]]))


def outputs(num_images: int, *, layers: int = 3) -> dict:
    torch.manual_seed(1)
    parts = [
        {
            "pred_logits": torch.randn(num_images, 9, 8, requires_grad=True),
            "pred_masks": torch.randn(num_images, 9, 6, 8, requires_grad=True),
        }
        for _ in range(layers)
    ]
    return {**parts[-1], "aux_outputs": parts[:-1]}


@pytest.mark.parametrize("mixed", [False, True])
def test_losses_and_gradients_equal_those_of_masks(mixed):
    targets, config = label_maps(torch.int32), LossConfig(num_points=200)
    results = []
    for given in ([targets[0], *as_masks(targets)[1:]] if mixed else targets, as_masks(targets)):
        predicted = outputs(3)
        losses = SetCriterion(config)(predicted, given, seeds=[3, 4, 5])
        sum(losses.values()).backward()
        leaves = [predicted, *predicted["aux_outputs"]]
        results.append((losses, [leaf[name].grad for leaf in leaves for name in ("pred_logits", "pred_masks")]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_one_transfer_for_all_layers_and_images(monkeypatch):
    calls = []
    real = criterion.match_all
    monkeypatch.setattr(criterion, "match_all", lambda costs: calls.append(len(costs)) or real(costs))
    SetCriterion(LossConfig(num_points=50))(outputs(3), label_maps(torch.int32))
    assert calls == [6]  # 3 layers times the 2 images that hold something


def test_refusals():
    good = label_maps(torch.int32)
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) with a label map of shape \(3, 4, 5\)"):
        target_batch([LabelMapTarget(torch.tensor([0, 1]), torch.zeros(3, 4, 5))], 1, 7, CPU)
    with pytest.raises(ValueError, match="different sizes"):
        target_batch([good[0], LabelMapTarget(torch.tensor([0]), torch.zeros(4, 5))], 2, 7, CPU)
    with pytest.raises(ValueError, match=r"span 0\.\.6 but the vocabulary has 5 classes"):
        target_batch(good, 3, 5, CPU)
    with pytest.raises(ValueError, match="3 targets for 2 images"):
        target_batch(good, 2, 7, CPU)
