"""k-means: closed form, seeded, and what it does where there is little to cluster."""

from __future__ import annotations

import pytest
import torch

from san.video.clustering import kmeans


def test_two_groups_in_closed_form() -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 4.0], [10.0, 2.0]])
    for seed in range(8):
        found = kmeans(points, 2, seed=seed)
        centres = found.centres[found.centres[:, 0].argsort()]
        assert torch.allclose(centres, torch.tensor([[0.0, 1.0], [10.0, 2.0]], dtype=torch.float64))
        assert found.labels[:2].unique().numel() == found.labels[2:].unique().numel() == 1
        assert found.labels[0] != found.labels[2]


def test_a_centre_is_the_mean_of_the_points_that_are_nearest_to_it() -> None:
    points = torch.randn(300, 5, generator=torch.Generator().manual_seed(1)) * 3 + 100
    found = kmeans(points, 7)
    assert torch.equal(torch.cdist(points.double(), found.centres).argmin(dim=1), found.labels)
    means = torch.stack([points[found.labels == label].double().mean(dim=0) for label in range(7)])
    assert torch.allclose(means, found.centres)


def test_the_seed_decides() -> None:
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    first = kmeans(points, 12, seed=5)
    torch.manual_seed(4)  # the caller's own state plays no part
    assert torch.equal(first.centres, kmeans(points, 12, seed=5).centres)
    assert not torch.equal(first.centres, kmeans(points, 12, seed=6).centres)


def test_as_many_centres_as_points_are_the_points() -> None:
    points = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)) + 5
    found = kmeans(points, 40)
    assert sorted(found.labels.tolist()) == list(range(40))
    assert torch.equal(found.centres[found.labels].float(), points)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (3, 3), (9, 3)])
def test_equal_points_are_one(count: int, expected: int) -> None:
    points = torch.tensor([[1.0], [1.0], [5.0], [5.0], [9.0], [9.0]])
    found = kmeans(points, count)
    assert len(found.centres) == expected
    assert found.labels.unique().numel() == expected


def test_no_centre_stays_empty() -> None:
    """Lloyd's algorithm can leave centres without points; they get the points that fit worst."""
    for seed in range(30):
        points = torch.randint(0, 6, (40, 2), generator=torch.Generator().manual_seed(seed)).float()
        assert len(kmeans(points, 15, seed=seed).centres) == min(15, len(points.unique(dim=0)))


@pytest.mark.parametrize(("points", "count"), [(torch.zeros(3, 2), 0), (torch.zeros(0, 2), 1)])
def test_nothing_to_cluster_is_refused(points: torch.Tensor, count: int) -> None:
    with pytest.raises(ValueError, match="give at least one of each"):
        kmeans(points, count)
