"""The criterion: closed forms, gradients, empty targets, seeds, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from san.losses import LabelMapTarget, LossConfig, SetCriterion, Target, dice_loss, mask_loss, matching_cost
from san.losses.point_sampling import sample_points, uniform_points
from san.losses.targets import target_batch

NUM_CLASSES = 5
SMALL = LossConfig(num_points=64)


def make_outputs(batch=2, queries=6, layers=1, requires_grad=False, seed=0):
    gen = torch.Generator().manual_seed(seed)

    def layer():
        return {
            "pred_logits": torch.randn(batch, queries, NUM_CLASSES + 1, generator=gen).requires_grad_(requires_grad),
            "pred_masks": (torch.randn(batch, queries, 6, 8, generator=gen) * 3).requires_grad_(requires_grad),
        }

    return {**layer(), "aux_outputs": [layer() for _ in range(layers)]}


def make_targets(counts=(3, 2), seed=1):
    gen = torch.Generator().manual_seed(seed)
    return [
        Target(torch.randperm(NUM_CLASSES, generator=gen)[:n], torch.rand(n, 24, 32, generator=gen) > 0.6)
        for n in counts
    ]


def tensors(outputs):
    return [layer[key] for layer in (outputs, *outputs["aux_outputs"]) for key in ("pred_logits", "pred_masks")]


def select(outputs, index):
    """The same outputs for some images of the batch, in the given order."""
    picked = {key: value[index] for key, value in outputs.items() if key != "aux_outputs"}
    return {**picked, "aux_outputs": [{k: v[index] for k, v in aux.items()} for aux in outputs["aux_outputs"]]}


def test_dice_closed_form():
    loss = dice_loss(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([1 - (2 * 1 + 1) / (2 + 2 + 1)]))
    perfect = dice_loss(torch.tensor([[50.0, -50.0]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(perfect, torch.zeros(1))
    empty = dice_loss(torch.full((1, 3), -50.0), torch.zeros(1, 3))  # nothing expected, nothing found
    torch.testing.assert_close(empty, torch.zeros(1))


def test_mask_loss_closed_form():
    torch.testing.assert_close(mask_loss(torch.zeros(2, 9), torch.rand(2, 9)), torch.full((2,), math.log(2)))


def test_constant_masks_closed_form():
    """Maps are constant, so the points do not matter; one query, one target, known numbers."""
    class_logits = torch.tensor([[[math.log(2.0), 0.0, 0.0]]])  # 1/2, 1/4 and 1/4 for "no object"
    outputs = {"pred_logits": class_logits, "pred_masks": torch.zeros(1, 1, 4, 4)}
    target = Target(torch.tensor([0]), torch.zeros(1, 16, 16, dtype=torch.bool))
    losses = SetCriterion(LossConfig(num_points=100, class_weight=2, mask_weight=3, dice_weight=4))(outputs, [target])
    assert losses["loss_ce"].item() == pytest.approx(2 * math.log(2))
    assert losses["loss_mask"].item() == pytest.approx(3 * math.log(2))
    assert losses["loss_dice"].item() == pytest.approx(4 * (1 - 1 / (50 + 0 + 1)))


def test_cross_entropy_is_a_mean_weighted_by_class():
    """Two queries: one is matched (weight 1), one is "no object" (weight 0.1)."""
    logits = torch.tensor([[[3.0, 0.0, 1.0], [0.0, 1.0, 2.0]]])
    outputs = {"pred_logits": logits, "pred_masks": torch.zeros(1, 2, 4, 4)}
    target = Target(torch.tensor([0]), torch.ones(1, 8, 8, dtype=torch.bool))
    loss = SetCriterion(SMALL)(outputs, [target])["loss_ce"]
    nll = -logits[0].log_softmax(-1)
    torch.testing.assert_close(loss, 2 * (1.0 * nll[0, 0] + 0.1 * nll[1, 2]) / 1.1)


def test_mask_losses_are_summed_and_divided_by_the_number_of_masks():
    """The mean over masks of the batch, not the mean of the images' means."""
    outputs, targets, seeds = make_outputs(layers=0), make_targets((3, 1)), [4, 5]
    criterion = SetCriterion(SMALL)
    both = criterion(outputs, targets, seeds=seeds)
    one, two = (criterion(select(outputs, [i]), [targets[i]], seeds=[seeds[i]]) for i in range(2))
    for key in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(both[key], (3 * one[key] + 1 * two[key]) / 4)


def test_perfect_prediction_is_nearly_free():
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :, :16], masks[1, :, 16:] = True, True
    mask_logits = torch.where(masks, 10.0, -10.0).unsqueeze(0)
    class_logits = torch.full((1, 2, NUM_CLASSES + 1), -40.0)
    class_logits[0, 0, 3] = class_logits[0, 1, 1] = 40.0
    outputs = {"pred_logits": class_logits.flip(1), "pred_masks": mask_logits.flip(1)}  # queries in the other order
    uniform = LossConfig(num_points=2000, importance_ratio=0.0)  # without seeking out the border, which stays blurred
    losses = SetCriterion(uniform)(outputs, [Target(torch.tensor([3, 1]), masks)])
    assert losses["loss_ce"] < 1e-4
    assert losses["loss_mask"] < 5 * 0.1
    assert losses["loss_dice"] < 5 * 0.05


def test_names_and_layers():
    """Each layer is matched on its own, and its losses equal those of the layer alone."""
    outputs, targets = make_outputs(layers=2), make_targets()
    losses = SetCriterion(SMALL)(outputs, targets, seeds=[1, 2])
    names = {"loss_ce", "loss_mask", "loss_dice"}
    assert set(losses) == names | {f"{n}_{i}" for n in names for i in range(2)}
    alone = SetCriterion(SMALL)(outputs["aux_outputs"][0], targets, seeds=[1, 2])  # layer 0 draws as stream 0
    for name in names:
        torch.testing.assert_close(losses[f"{name}_0"], alone[name])


def test_every_output_gets_a_gradient():
    outputs = make_outputs(requires_grad=True)
    losses = SetCriterion(SMALL)(outputs, make_targets())
    assert all(value.dim() == 0 and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    for tensor in tensors(outputs):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0


def test_gradient_descent_lowers_the_losses():
    outputs = make_outputs(requires_grad=True)
    halves = torch.zeros(2, 24, 32, dtype=torch.bool)
    halves[0, :12], halves[1, :, 16:] = True, True  # borders that the 6 x 8 logits can draw
    targets = [Target(torch.tensor([0, 1]), halves), Target(torch.tensor([2, 3]), ~halves)]
    optimizer = torch.optim.Adam(tensors(outputs), lr=0.2)
    totals = []
    for _ in range(80):
        total = sum(SetCriterion(SMALL)(outputs, targets, seeds=[1, 2]).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.35 * totals[0]


@pytest.mark.parametrize("counts", [(3, 0), (0, 2), (0, 0)])
def test_images_without_targets(counts):
    outputs = make_outputs(requires_grad=True)
    losses = SetCriterion(SMALL)(outputs, make_targets(counts))
    sum(losses.values()).backward()
    for tensor in tensors(outputs):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    if not any(counts):
        assert losses["loss_mask"] == losses["loss_dice"] == 0
        background = -outputs["pred_logits"].log_softmax(-1)[..., -1].mean()
        torch.testing.assert_close(losses["loss_ce"], 2 * background)


def test_more_targets_than_queries():
    """The one query goes to the target it fits, and the others still count among the masks."""
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[2] = True
    logits = torch.zeros(1, 1, NUM_CLASSES + 1)
    outputs = {"pred_logits": logits, "pred_masks": torch.full((1, 1, 4, 4), 5.0)}
    logits[0, 0, 4] = 3.0
    losses = SetCriterion(SMALL)(outputs, [Target(torch.tensor([0, 1, 4]), masks)], seeds=[0])
    torch.testing.assert_close(losses["loss_ce"], -2 * logits[0, 0].log_softmax(-1)[4])
    one = SetCriterion(SMALL)(outputs, [Target(torch.tensor([4]), masks[2:])], seeds=[0])
    torch.testing.assert_close(losses["loss_mask"], one["loss_mask"] / 3)


def test_seeds_make_images_independent_of_their_batch():
    outputs, targets, seeds = make_outputs(batch=3), make_targets((3, 0, 2)), [11, 12, 13]
    criterion = SetCriterion(SMALL)
    whole = criterion(outputs, targets, seeds=seeds)
    torch.manual_seed(99)  # the global generator must not matter
    order = [2, 0, 1]
    shuffled = criterion(select(outputs, order), [targets[i] for i in order], seeds=[seeds[i] for i in order])
    for key in whole:
        torch.testing.assert_close(whole[key], shuffled[key])
    other = criterion(outputs, targets, seeds=[11, 12, 14])
    assert other["loss_mask"] != whole["loss_mask"]


def test_without_seeds_the_global_generator_decides():
    outputs, targets, criterion = make_outputs(), make_targets(), SetCriterion(SMALL)
    torch.manual_seed(5)
    first = criterion(outputs, targets)
    second = criterion(outputs, targets)
    torch.manual_seed(5)
    again = criterion(outputs, targets)
    assert first["loss_mask"] == again["loss_mask"] != second["loss_mask"]


def test_permuting_queries_changes_nothing():
    outputs, targets = make_outputs(), make_targets()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    permuted = {key: outputs[key][:, order] for key in ("pred_logits", "pred_masks")}
    permuted["aux_outputs"] = [{key: aux[key][:, order] for key in aux} for aux in outputs["aux_outputs"]]
    before = SetCriterion(SMALL)(outputs, targets, seeds=[1, 2])
    after = SetCriterion(SMALL)(permuted, targets, seeds=[1, 2])
    for key in before:
        torch.testing.assert_close(before[key], after[key])


def test_permuting_targets_changes_only_the_random_points():
    outputs, targets = make_outputs(layers=0), make_targets()
    flipped = [Target(target.labels.flip(0), target.masks.flip(0)) for target in targets]
    many = SetCriterion(LossConfig(num_points=20000))
    before, after = many(outputs, targets, seeds=[1, 2]), many(outputs, flipped, seeds=[1, 2])
    torch.testing.assert_close(before["loss_ce"], after["loss_ce"])
    torch.testing.assert_close(before["loss_mask"], after["loss_mask"], rtol=0.02, atol=0)
    torch.testing.assert_close(before["loss_dice"], after["loss_dice"], rtol=0.02, atol=0)


def test_mappings_are_accepted_as_targets():
    outputs, targets = make_outputs(), make_targets()
    mappings = [{"labels": target.labels, "masks": target.masks} for target in targets]
    before = SetCriterion(SMALL)(outputs, targets, seeds=[1, 2])
    after = SetCriterion(SMALL)(outputs, mappings, seeds=[1, 2])
    assert before == after


def test_float32_under_autocast_and_from_half_outputs():
    outputs, targets = make_outputs(), make_targets()
    plain = SetCriterion(SMALL)(outputs, targets, seeds=[1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = SetCriterion(SMALL)(outputs, targets, seeds=[1, 2])
    assert plain == cast
    half = {key: outputs[key].bfloat16() for key in ("pred_logits", "pred_masks")}
    losses = SetCriterion(SMALL)(half, targets, seeds=[1, 2])
    assert all(value.dtype == torch.float32 for value in losses.values())


def test_no_state():
    criterion = SetCriterion()
    assert criterion.config == LossConfig()
    assert not criterion.state_dict()


@pytest.mark.parametrize("key", ["pred_logits", "pred_masks"])
def test_non_finite_outputs_are_refused(key):
    outputs = make_outputs(layers=0)
    outputs[key][0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        SetCriterion(SMALL)(outputs, make_targets())


@pytest.mark.parametrize(
    ("targets", "seeds", "message"),
    [
        (make_targets((3,)), None, "1 targets for 2 images"),
        (make_targets(), [1], "1 seeds for 2 images"),
        ([Target(torch.tensor([5]), torch.ones(1, 24, 32) > 0), *make_targets((2,))], None, "vocabulary has 5 classes"),
        ([Target(torch.tensor([-1]), torch.ones(1, 24, 32) > 0), *make_targets((2,))], None, "span -1.."),
        ([Target(torch.tensor([1, 2]), torch.ones(1, 24, 32) > 0), *make_targets((2,))], None, r"give \(M,\)"),
        ([Target(torch.tensor([1]), torch.ones(1, 8, 8) > 0), *make_targets((2,))], None, "different sizes"),
    ],
)
def test_bad_targets(targets, seeds, message):
    with pytest.raises(ValueError, match=message):
        SetCriterion(SMALL)(make_outputs(), targets, seeds=seeds)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("class_weight", -1.0),
        ("mask_weight", math.nan),
        ("no_object_weight", 0.0),
        ("num_points", 0),
        ("num_points", 2.5),
        ("oversample_ratio", 0.5),
        ("importance_ratio", 1.5),
    ],
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=option):
        LossConfig(**{option: value})


def test_bad_costs():
    with pytest.raises(ValueError, match="nothing decides the match"):
        LossConfig(cost_class=0, cost_mask=0, cost_dice=0)


@pytest.mark.parametrize(("oversample_ratio", "importance_ratio"), [(1.0, 0.0), (1.0, 1.0), (3.0, 1.0), (3.0, 0.75)])
def test_point_options(oversample_ratio, importance_ratio):
    config = LossConfig(num_points=33, oversample_ratio=oversample_ratio, importance_ratio=importance_ratio)
    logits = torch.randn(4, 6, 8)
    points = SetCriterion(config).parts["masks"]._points(logits, [4], [None])
    assert points.shape == (4, 33, 2)
    assert ((points >= 0) & (points <= 1)).all()


def label_map_batch(num_images: int) -> tuple[torch.Tensor, torch.Tensor, list[LabelMapTarget]]:
    """Class logits, mask logits and targets; every fourth image has none, others have one, three or seven."""
    torch.manual_seed(0)
    maps = [torch.randint(0, kinds, (12, 16)) for kinds in (1, 3, 7, 1) * (num_images // 4)]
    targets = [LabelMapTarget(own.unique()[: 0 if image % 4 == 0 else 9], own) for image, own in enumerate(maps)]
    return torch.randn(num_images, 9, 8), torch.randn(num_images, 9, 6, 8), targets


@pytest.mark.parametrize("held", [1, 2**24])
def test_costs_of_a_batch_are_those_of_each_image(held, monkeypatch):
    """However many images' values are held at a time."""
    monkeypatch.setattr("san.losses.criterion._POINT_VALUES", held)
    config = LossConfig(num_points=50)
    class_logits, mask_logits, targets = label_map_batch(8)
    truth = target_batch(targets, 8, 7, torch.device("cpu"))
    seeded = [torch.Generator().manual_seed(image) for image in range(8)]
    costs = iter(SetCriterion(config)._costs(class_logits, mask_logits, truth, seeded))
    for image, target in enumerate(targets):
        if len(target.labels) == 0:
            continue
        points = uniform_points(1, 50, device=torch.device("cpu"), generator=torch.Generator().manual_seed(image))
        masks = (target.label_map == target.labels[:, None, None]).float()
        at_logits, at_masks = (sample_points(maps[None], points)[0] for maps in (mask_logits[image], masks))
        alone = matching_cost(class_logits[image], at_logits, target.labels, at_masks, config=config)
        torch.testing.assert_close(next(costs), alone, rtol=1e-5, atol=1e-5)
    assert not list(costs)


def test_a_larger_batch_takes_hardly_more_operations():
    """A GPU is waiting for the host where every image is computed by itself."""

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for num_images in (4, 12):
        class_logits, mask_logits, targets = label_map_batch(num_images)
        truth = target_batch(targets, num_images, 7, torch.device("cpu"))
        with Counting() as counting:
            SetCriterion(LossConfig(num_points=50))._costs(class_logits, mask_logits, truth, [None] * num_images)
        counts.append(counting.count)
    assert counts[1] - counts[0] <= 8 * 8, "an image by itself only has its points drawn and its costs cut out"
