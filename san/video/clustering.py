"""k-means, seeded, the same on every device.  N points, P centres, S dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_ITERATIONS = 100


@dataclass(frozen=True)
class Clusters:
    """What `kmeans` finds.

    Attributes:
        centres: (P, S) float64 on the CPU, the means of their members; each has one at least.
        labels: (N,) int64, the centre of each point.
    """

    centres: Tensor
    labels: Tensor


def kmeans(points: Tensor, count: int, *, seed: int = 0) -> Clusters:
    """Lloyd's algorithm from the centres that k-means++ draws, until no point changes its centre.

    It runs in float64 on the CPU: the result depends on the points and the seed alone.

    Args:
        points: (N, S), finite.
        count: of centres. There are fewer where there are fewer distinct points.
        seed: of the draws.

    Raises:
        ValueError: there is no point, or `count` is not positive.
    """
    if count < 1 or not len(points):
        raise ValueError(f"{count} centres for {len(points)} points; give at least one of each")
    points = points.detach().cpu().double()
    points = points - (middle := points.mean(dim=0))  # differences of large numbers would lose digits
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
    """Points drawn one by one, with probabilities that grow with the squared distance to those drawn before."""
    chosen = [int(torch.rand((), generator=generator, dtype=torch.float64) * len(points))]
    distances = torch.full((len(points),), torch.inf, dtype=torch.float64)
    while len(chosen) < count:
        newest = points[chosen[-1]]
        distances = torch.minimum(distances, (points - newest).square().sum(dim=1))
        sums = distances.cumsum(dim=0)
        if sums[-1] <= 0:
            break  # every point has been drawn, or one that equals it
        draw = torch.rand((), generator=generator, dtype=torch.float64) * sums[-1]
        chosen.append(min(int(torch.searchsorted(sums, draw, right=True)), int(distances.nonzero()[-1])))
    return points[chosen]


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (N, P)."""
    squares = points.square().sum(dim=1)[:, None] + centres.square().sum(dim=1)
    return (squares - 2 * points @ centres.T).clamp(min=0)


def _fill_empty(distances: Tensor, nearest: Tensor, count: int) -> None:
    """Gives each centre without a point the one that is farthest from its own, in place."""
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
    """Means of the members (P, S); a centre without any stays."""
    member = torch.zeros(len(points), len(centres), dtype=points.dtype)
    member[torch.arange(len(points)), labels] = 1.0  # (N, P)
    sizes = member.sum(dim=0)[:, None]
    return torch.where(sizes > 0, member.T @ points / sizes.clamp(min=1), centres)
