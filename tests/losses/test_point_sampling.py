"""Points: reading at continuous coordinates, choosing uncertain ones, seeds."""

from __future__ import annotations

import pytest
import torch

from san.losses.point_sampling import keep_uncertain, sample_points, seeded_generator, uniform_points


def test_pixel_centres_are_read_exactly():
    maps = torch.arange(6.0).reshape(1, 1, 2, 3)
    points = torch.tensor([[[(x + 0.5) / 3, (y + 0.5) / 2] for y in range(2) for x in range(3)]])
    torch.testing.assert_close(sample_points(maps, points), torch.arange(6.0).reshape(1, 1, 6))


def test_between_pixels_is_bilinear_and_outside_is_zero():
    maps = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    points = torch.tensor([[[0.5, 0.5], [0.5, 0.25], [1.0, 0.75]]])
    # the centre is the mean of four; (0.5, 0.25) lies on the first row; the right border is half outside
    torch.testing.assert_close(sample_points(maps, points), torch.tensor([[[6.0, 2.0, 6.0]]]))


def test_maps_of_different_sizes_are_read_at_the_same_place():
    coarse = torch.zeros(1, 1, 4, 4)
    coarse[..., :2] = 1.0  # left half
    fine = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    points = torch.tensor([[[0.2, 0.6], [0.3, 0.3], [0.8, 0.5]]])
    torch.testing.assert_close(sample_points(coarse, points), sample_points(fine, points))


def test_oversampling_keeps_the_most_uncertain_points():
    ramp = torch.linspace(-4, 4, 64).expand(1, 1, 64, 64)  # undecided along the middle column
    candidates = uniform_points(1, 300, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0))
    kept = keep_uncertain(ramp, candidates, 100)
    assert kept.shape == (1, 100, 2)
    distance = sample_points(ramp, candidates).abs().flatten().sort().values
    torch.testing.assert_close(sample_points(ramp, kept).abs().flatten().sort().values, distance[:100])
    assert (kept[..., 0] - 0.5).abs().max() < 0.25 < (candidates[..., 0] - 0.5).abs().max()


def test_no_gradient_through_the_choice():
    logits = torch.randn(2, 1, 8, 8, requires_grad=True)
    kept = keep_uncertain(logits, torch.rand(2, 30, 2), 10)
    assert not kept.requires_grad


@pytest.mark.parametrize("other", [(7, 1), (8, 0), (8, 1), (-7, 0), (0, 7)])
def test_seeds_and_streams_are_independent(other):
    def draw(seed, stream):
        return torch.rand(64, generator=seeded_generator(seed, stream, "cpu"))

    torch.testing.assert_close(draw(7, 0), draw(7, 0), rtol=0, atol=0)
    correlation = torch.corrcoef(torch.stack([draw(7, 0), draw(*other)]))[0, 1]
    assert abs(correlation) < 0.5


def test_large_seeds_work():
    seeded_generator(2**64 - 1, 3, "cpu")
    seeded_generator(-(2**63), 3, "cpu")
