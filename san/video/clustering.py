"""Seeded k-means with the same result on every device.  N points, P centres, S dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_ITERATIONS = 100


@dataclass(frozen=True)
class Clusters:
    """Result of `kmeans`.

    Attributes:
        centres: (P, S) float64 on the CPU, means of their members; each has at least one.
        labels: (N,) int64, the centre of each point.
    """

    centres: Tensor
    labels: Tensor


def kmeans(points: Tensor, count: int, *, seed: int = 0) -> Clusters:
    """Run Lloyd's algorithm from the centres of k-means++, until no point changes its centre.

    It runs in float64 on the CPU, so the result depends only on the points and the seed.

    Args:
        points: (N, S), finite.
        count: number of centres; fewer if there are fewer distinct points.
        seed: of the random numbers.

    Raises:
        ValueError: there is no point, or `count` is not positive.
    """
    if count < 1 or not len(points):
        raise ValueError(f"{count} centres for {len(points)} points; give at least one of each")
    points = points.detach().cpu().double()
    points = points - (middle := points.mean(dim=0))  # for precision
    centres = _first_centres(points, count, torch.Generator().manual_seed(seed))
    labels = torch.full((len(points),), -1)
    for _ in range(_MAX_ITERATIONS):
        distances, nearest = _distances(points, centres).min(dim=1)
        _fill_empty(distances, nearest, len(centres))
        if torch.equal(nearest, labels):
            break
        labels = nearest
        centres = _means(points, labels, centres)
    used, labels = labels.unique(return_inverse=True)
    return Clusters(centres[used] + middle, labels)


def _first_centres(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw points one by one, with probabilities proportional to the squared distance to earlier ones."""
    chosen = [int(torch.rand((), generator=generator, dtype=torch.float64) * len(points))]
    distances = torch.full((len(points),), torch.inf, dtype=torch.float64)
    while len(chosen) < count:
        newest = points[chosen[-1]]
        distances = torch.minimum(distances, (points - newest).square().sum(dim=1))
        sums = distances.cumsum(dim=0)
        if sums[-1] <= 0:
            break  # all distinct points are drawn
        draw = torch.rand((), generator=generator, dtype=torch.float64) * sums[-1]
        chosen.append(min(int(torch.searchsorted(sums, draw, right=True)), int(distances.nonzero()[-1])))
    return points[chosen]


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return squared distances (N, P)."""
    squares = points.square().sum(dim=1)[:, None] + centres.square().sum(dim=1)
    return (squares - 2 * points @ centres.T).clamp(min=0)


def _fill_empty(distances: Tensor, nearest: Tensor, count: int) -> None:
    """Give each empty centre the point farthest from its own centre, in place."""
    sizes = torch.bincount(nearest, minlength=count)
    for empty in (sizes == 0).nonzero().flatten().tolist():
        movable = torch.where(sizes[nearest] > 1, distances, -1.0)
        farthest = int(movable.argmax())
        if movable[farthest] <= 0:
            return
        sizes[nearest[farthest]] -= 1
        sizes[empty] += 1
        nearest[farthest], distances[farthest] = empty, 0.0


def _means(points: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Return the means of the members (P, S); an empty centre is unchanged."""
    member = torch.zeros(len(points), len(centres), dtype=points.dtype)
    member[torch.arange(len(points)), labels] = 1.0  # (N, P)
    sizes = member.sum(dim=0)[:, None]
    return torch.where(sizes > 0, member.T @ points / sizes.clamp(min=1), centres)
