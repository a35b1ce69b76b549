"""The term structure: closed form, gradients, and that neither batches nor accumulation change it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from san.losses import LossConfig, SetCriterion, Target
from san.losses.terms import average_counts, count_batch
from san.record import FieldError

CONFIG = LossConfig(num_points=64, terms=("classes", "masks", "structure"))
CLASSES, QUERIES, WIDTH = 5, 6, 8
COUNTS = (3, 1, 0, 4)


def outputs(batch: int = 4, *, seed: int = 0) -> dict[str, Any]:
    """Two supervised layers with embeddings, and the names' embeddings, all leaves with a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, WIDTH, generator=generator), dim=-1).requires_grad_()

    def layer() -> dict[str, Any]:
        return {
            "pred_logits": torch.randn(batch, QUERIES, CLASSES + 1, generator=generator),
            "pred_masks": torch.randn(batch, QUERIES, 6, 8, generator=generator) * 3,
            "sls_embed": unit(batch, QUERIES),
        }

    return {**layer(), "aux_outputs": [layer()], "text_embed": unit(CLASSES)}


def targets(counts: tuple[int, ...] = COUNTS) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    return [
        Target(torch.randperm(CLASSES, generator=generator)[:n], torch.rand(n, 24, 32, generator=generator) > 0.6)
        for n in counts
    ]


def part(whole: dict[str, Any], index: list[int]) -> dict[str, Any]:
    """Some images of a batch."""
    keep = {key: value[index] for key, value in whole.items() if key not in ("aux_outputs", "text_embed")}
    aux = [{key: value[index] for key, value in each.items()} for each in whole["aux_outputs"]]
    return keep | {"aux_outputs": aux, "text_embed": whole["text_embed"]}


def structure(whole: dict[str, Any], index: list[int], **options: Any) -> dict[str, Tensor]:
    chosen = [targets()[each] for each in index]
    found = SetCriterion(CONFIG)(part(whole, index), chosen, seeds=index, **options)
    return {name: loss for name, loss in found.items() if "structure" in name}


def one_image(cosine_of_masks: float, cosine_of_names: float) -> tuple[dict[str, Any], list[Target]]:
    """Two masks of classes 0 and 1, matched with queries 0 and 1."""

    def pair(cosine: float) -> Tensor:
        return torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])

    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :2], masks[0, 1, 2:] = 1, 1
    whole = {
        "pred_logits": torch.tensor([[[9.0, 0, 0], [0, 9.0, 0]]]),
        "pred_masks": masks * 40 - 20,
        "sls_embed": pair(cosine_of_masks)[None].requires_grad_(),
        "text_embed": pair(cosine_of_names),
    }
    return whole, [Target(torch.tensor([0, 1]), masks[0] > 0)]


@pytest.mark.parametrize(("masks", "names", "loss"), [(0.9, 0.4, 0.5), (0.4, 0.9, 0.5), (0.7, 0.7, 0.0)])
def test_the_loss_is_the_difference_of_distances(masks: float, names: float, loss: float) -> None:
    whole, truth = one_image(masks, names)
    found = SetCriterion(CONFIG)(whole, truth)["loss_structure"]
    torch.testing.assert_close(found, torch.tensor(loss), atol=1e-6, rtol=1e-6)
    tripled = LossConfig(num_points=64, terms=("structure",), options={"structure": {"weight": 3.0}})
    torch.testing.assert_close(SetCriterion(tripled)(whole, truth), {"loss_structure": 3 * found})


def test_it_is_the_mean_over_the_pairs_of_each_image() -> None:
    """9 pairs: 3 of the first image, 6 of the last; those of the other images have none."""
    whole = outputs()
    losses = structure(whole, [0, 1, 2, 3])
    assert losses.keys() == {"loss_structure", "loss_structure_0"}
    alone = [structure(whole, [image]) for image in (0, 3)]
    for name, loss in losses.items():
        torch.testing.assert_close(loss, (3 * alone[0][name] + 6 * alone[1][name]) / 9)
        assert loss > 0.1
        assert structure(whole, [1])[name] == structure(whole, [2])[name] == 0


def test_masks_get_a_gradient_and_names_none() -> None:
    whole = outputs()
    sum(structure(whole, [0, 1, 2, 3]).values()).backward()  # type: ignore[union-attr]
    assert whole["text_embed"].grad is None
    for layer in (whole, *whole["aux_outputs"]):
        per_image = layer["sls_embed"].grad.norm(dim=-1).gt(0).sum(dim=1)
        assert per_image.tolist() == [3, 0, 0, 4]


def test_descent_brings_the_distances_together() -> None:
    whole, truth = one_image(0.9, -0.2)
    embed, criterion = whole["sls_embed"].detach().requires_grad_(), SetCriterion(CONFIG)
    optimizer = torch.optim.SGD([embed], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        whole["sls_embed"] = F.normalize(embed, dim=-1)
        loss = criterion(whole, truth)["loss_structure"]
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize("parts", [([0, 1], [2, 3]), ([0, 1, 3], [2])])
def test_accumulation_changes_neither_losses_nor_gradients(parts: tuple[list[int], ...]) -> None:
    whole = outputs()
    expected = structure(whole, [0, 1, 2, 3])
    sum(expected.values()).backward()  # type: ignore[union-attr]
    again = outputs()
    sums = [count_batch([COUNTS[image] for image in each], QUERIES, 0.1) for each in parts]
    for processes in (1, 2):
        norm = average_counts(*map(sum, zip(*sums, strict=True)), processes)
        found = [structure(again, each, norm=norm) for each in parts]
        for name, loss in expected.items():
            torch.testing.assert_close(sum(each[name] for each in found) / processes, loss)
        if processes == 1:
            sum(loss for each in found for loss in each.values()).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(again["sls_embed"].grad, whole["sls_embed"].grad)


def test_pairs_are_those_of_matched_masks() -> None:
    """At most one mask per query; an iteration without a pair divides by 1."""
    assert count_batch([3, 9, 1, 0], 6, 0.1)[3] == 3 + 15
    assert average_counts(*count_batch([1, 0], 6, 0.1), num_processes=2).pairs == 0.5


def test_off_by_default_and_other_losses_stay() -> None:
    whole = outputs()
    plain = SetCriterion(LossConfig(num_points=64))(whole, targets(), seeds=[0, 1, 2, 3])
    more = SetCriterion(CONFIG)(whole, targets(), seeds=[0, 1, 2, 3])
    assert more.keys() - plain.keys() == {"loss_structure", "loss_structure_0"}
    assert all(torch.equal(more[name], plain[name]) for name in plain)


def test_bad_input_is_refused() -> None:
    whole, truth = one_image(0.5, 0.5)
    del whole["text_embed"]
    with pytest.raises(ValueError, match="'structure' compares embeddings; give outputs with sls_embed and text_embed"):
        SetCriterion(CONFIG)(whole, truth)
    with pytest.raises(FieldError, match="loss.options.structure.weight is -1; set it within 0"):
        SetCriterion(LossConfig(terms=("structure",), options={"structure": {"weight": -1}}))
