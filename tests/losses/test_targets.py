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


def numbered(num_images: int = 3) -> list[LabelMapTarget]:
    """The same maps with a number per mask: values 100, 101, ... of which several are of one class."""
    targets = []
    for target in label_maps(torch.int32, num_images):
        values = 100 + torch.arange(len(target.labels))
        label_map = torch.full_like(target.label_map, 255)
        for label, value in zip(target.labels, values, strict=True):
            label_map[target.label_map == label] = value
        targets.append(LabelMapTarget(target.labels % 3, label_map, values))
    return targets


def test_several_masks_of_one_class_are_sampled_each() -> None:
    targets = numbered()
    masks = [Target(t.labels, t.label_map == t.values[:, None, None]) for t in targets]
    assert any(len(t.labels.unique()) < len(t.labels) for t in targets)
    one, other = LabelMapTargetBatch(targets, CPU), MaskTargetBatch(masks, CPU)
    points = points_with_borders(len(targets), 400)
    torch.testing.assert_close(one.at_shared_points(points), other.at_shared_points(points), rtol=0, atol=2e-6)
    images, pairs = torch.tensor([0, 0, 2]), torch.tensor([1, 2, one.counts[0] + 1])
    points = points_with_borders(3, 200)
    found = one.at_pair_points(images, pairs, points)
    torch.testing.assert_close(found, other.at_pair_points(images, pairs, points), rtol=0, atol=2e-6)
    mixed = target_batch([targets[0], masks[1], masks[2]], 3, 7, CPU)  # maps become masks
    torch.testing.assert_close(mixed.at_pair_points(images, pairs, points), found, rtol=0, atol=2e-6)


def test_values_of_the_classes_compute_what_none_do() -> None:
    """Bit for bit, also beside an image whose masks are numbered."""
    plain = label_maps(torch.int32)
    spelled = [LabelMapTarget(t.labels, t.label_map, t.labels) for t in plain]
    points = torch.rand(3, 100, 2)
    expected = LabelMapTargetBatch(plain, CPU).at_shared_points(points)
    assert torch.equal(LabelMapTargetBatch(spelled, CPU).at_shared_points(points), expected)
    mixed = LabelMapTargetBatch([numbered()[0], *plain[1:]], CPU)
    assert torch.equal(mixed.at_shared_points(points)[mixed.counts[0] :], expected[mixed.counts[0] :])


def test_losses_of_numbered_masks_are_those_of_masks() -> None:
    """With the structure term; duplicates of a class are matched to queries of their own."""
    torch.manual_seed(1)
    targets = numbered()
    config = LossConfig(num_points=4000, terms=("classes", "masks", "structure"))
    outputs = {
        "pred_logits": torch.randn(3, 9, 8),
        "pred_masks": torch.randn(3, 9, 23, 31),
        "text_embed": torch.nn.functional.normalize(torch.randn(7, 5), dim=-1),
        "sls_embed": torch.nn.functional.normalize(torch.randn(3, 9, 5), dim=-1),
    }
    for target, logits in zip(targets, outputs["pred_masks"], strict=True):  # each mask has a query that fits
        for query, value in enumerate(target.values.tolist()):
            logits[query] = torch.where(target.label_map == value, 8.0, -8.0)
    masks = [{"labels": t.labels, "masks": t.label_map == t.values[:, None, None]} for t in targets]
    maps = [{"labels": t.labels, "label_map": t.label_map, "values": t.values} for t in targets]
    criterion_ = SetCriterion(config)
    one, other = criterion_(outputs, maps, seeds=[1, 2, 3]), criterion_(outputs, masks, seeds=[1, 2, 3])
    assert one.keys() == other.keys() == {"loss_ce", "loss_mask", "loss_dice", "loss_structure"}
    for name, loss in one.items():
        torch.testing.assert_close(loss, other[name], rtol=1e-4, atol=1e-5)
    assert one["loss_mask"] < 0.5 * config.mask_weight, "every mask is matched to the query that fits"


def test_values_of_another_number_are_refused() -> None:
    target = LabelMapTarget(torch.tensor([0, 1]), torch.zeros(4, 5), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) with values of shape \(1,\)"):
        target_batch([target], 1, 7, CPU)


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
