"""Samples random points, reads masks there, and selects uncertain points (docs/method.md#8.2, #8.3).

Legend: N masks, P points, K channels, (H, W) size of a map. A point is (x, y), each in [0, 1] over the whole map, so
that a point is the same place in maps of different sizes that cover the same area.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MASK64 = (1 << 64) - 1


def seeded_generator(seed: int, stream: int, device: torch.device | str) -> torch.Generator:
    """Return a generator that depends only on a seed and a stream number.

    The two are mixed (splitmix64's finaliser), so that neighbouring seeds and streams give unrelated numbers.

    Args:
        seed: any integer, for example the seed of one image at one position of the sample stream.
        stream: number of an independent sequence for that seed, for example the supervised layer.
        device: device of the generator.

    Returns:
        a seeded generator. CPU and CUDA generators give different numbers for the same seed.
    """
    state = (int(seed) * 0x9E3779B97F4A7C15 + (int(stream) + 1) * 0xD1B54A32D192ED03) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    state ^= state >> 31
    return torch.Generator(device=device).manual_seed(state & ((1 << 63) - 1))


def uniform_points(
    num_maps: int, num_points: int, *, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draw points uniformly.

    Args:
        num_maps: N, number of independent sets.
        num_points: P, number of points per set.
        device: device of the points and the generator.
        generator: source of randomness; None uses torch's global one.

    Returns:
        (N, P, 2) float32, x and y in [0, 1).
    """
    return torch.rand(num_maps, num_points, 2, device=device, generator=generator)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps bilinearly at points.

    Pixel centres are at (i + 0.5) / size, and values outside the map are 0, so values fade within half a pixel of the
    border. This is `grid_sample` with align_corners=False, as in the training of the published model.

    Args:
        maps: (N, K, H, W) floating point.
        points: (N, P, 2), x and y in [0, 1].

    Returns:
        (N, K, P), differentiable with respect to maps.
    """
    grid = 2.0 * points.unsqueeze(1) - 1.0  # (N, 1, P, 2)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(2)


def keep_uncertain(mask_logits: Tensor, candidates: Tensor, num_keep: int) -> Tensor:
    """Select the candidates where a mask is most uncertain, that is where the logit is nearest to 0.

    Args:
        mask_logits: (N, 1, H, W); no gradient flows through the selection.
        candidates: (N, P', 2) points.
        num_keep: number of points to keep, at most P'.

    Returns:
        (N, num_keep, 2), a subset of the candidates of each mask.
    """
    with torch.no_grad():
        distance = sample_points(mask_logits, candidates).squeeze(1).abs()  # (N, P')
        index = distance.topk(num_keep, dim=1, largest=False, sorted=False).indices  # (N, num_keep)
    return candidates.gather(1, index.unsqueeze(-1).expand(-1, -1, 2))  # (N, num_keep, 2)
