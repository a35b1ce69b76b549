"""Matching: closed forms, symmetries, bad costs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from san.losses import LossConfig, dice_loss, mask_loss, match, matching_cost
from san.losses.matcher import pairwise_dice_cost, pairwise_mask_cost


def test_two_by_two():
    queries, targets = match(torch.tensor([[1.0, 2.0], [1.5, 5.0]]))  # 2 + 1.5 beats 1 + 5
    assert queries.tolist() == [1, 0]
    assert targets.tolist() == [0, 1]


def test_more_targets_than_queries():
    queries, targets = match(torch.tensor([[3.0, 1.0, 2.0]]))
    assert queries.tolist() == [0]
    assert targets.tolist() == [1]


def test_no_targets():
    queries, targets = match(torch.zeros(4, 0))
    assert len(queries) == len(targets) == 0


def test_pairwise_costs_equal_the_losses_of_each_pair():
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 50) * 4, torch.rand(2, 50)
    ones = torch.ones(3, 2)
    for pairwise, loss in ((pairwise_mask_cost, mask_loss), (pairwise_dice_cost, dice_loss)):
        expected = torch.stack([loss(logits, masks[j].expand(3, -1)) for j in range(2)], dim=1)
        torch.testing.assert_close(pairwise(logits, masks), expected * ones)


def test_cost_closed_form():
    class_logits = torch.tensor([[math.log(2.0), 0.0, 0.0]])  # probabilities 1/2, 1/4, 1/4
    mask_logits = torch.zeros(1, 4)  # p = 1/2 everywhere
    masks = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    labels = torch.tensor([1])
    config = LossConfig(cost_class=3, cost_mask=5, cost_dice=7)
    expected = 3 * -0.25 + 5 * math.log(2) + 7 * (1 - (2 * 1 + 1) / (2 + 2 + 1))
    torch.testing.assert_close(
        matching_cost(class_logits, mask_logits, labels, masks, config=config), torch.tensor([[expected]])
    )


def test_cost_is_float32_under_autocast():
    torch.manual_seed(0)
    class_logits, mask_logits = torch.randn(4, 6) * 20, torch.randn(4, 100) * 20
    labels, masks = torch.tensor([0, 2]), (torch.rand(2, 100) > 0.5).float()
    plain = matching_cost(class_logits, mask_logits, labels, masks, config=LossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = matching_cost(class_logits, mask_logits, labels, masks, config=LossConfig())
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_permuting_queries_permutes_the_match():
    torch.manual_seed(0)
    cost = torch.randn(6, 4)
    order = torch.randperm(6)
    queries, targets = match(cost)
    permuted, same_targets = match(cost[order])
    assert targets.tolist() == same_targets.tolist() == [0, 1, 2, 3]
    assert order[permuted].tolist() == queries.tolist()


def test_match_minimises_the_total():
    torch.manual_seed(0)
    cost = torch.rand(4, 4)
    queries, targets = match(cost)
    every = torch.cartesian_prod(*[torch.arange(4)] * 4)
    every = every[(F.one_hot(every, 4).sum(1) == 1).all(1)]  # all 24 permutations
    assert len(every) == 24
    best = cost[every, torch.arange(4)].sum(1).min()
    torch.testing.assert_close(cost[queries, targets].sum(), best)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_costs_are_refused(value):
    cost = torch.rand(3, 2)
    cost[1, 1] = value
    with pytest.raises(FloatingPointError, match="1 of 6 matching costs are not finite.*learning rate"):
        match(cost)
