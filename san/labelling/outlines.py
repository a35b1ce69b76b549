"""Outlines of masks: polygons along the edges of pixels, with holes.

x goes right and y goes down. The pixel of row r and column c covers the square from (c, r) to (c + 1, r + 1), so that a
polygon without simplification has the area of its mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from san.io.errors import require_extra
from san.labelling.regions import Region

Ring = npt.NDArray[np.float64]
"""(N, 2) corners x, y of a closed line; the first is not repeated at the end."""


def region_polygons(region: Region, tolerance: float = 0.0) -> list[Any]:
    """Return the polygons of a region, one for each connected component, as `shapely.Polygon`.

    Args:
        region: of an image.
        tolerance: the outline may deviate from the mask by so many pixels (Douglas-Peucker; the number of components
            and holes does not change). At 0 the outline is exact.

    Raises:
        ValueError: the tolerance is negative.
        MissingExtraError: Shapely cannot be imported.
    """
    require_extra("label", "polygons", "shapely")
    import shapely

    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; give a number of pixels, 0 or more")
    across, down = _edges(region.crop), _edges(region.crop.T)[:, [1, 0, 3, 2]]
    lines = shapely.linestrings(np.concatenate([across, down]).reshape(-1, 2, 2))
    faces, *_ = shapely.polygonize_full(lines)  # components and their holes
    faces = shapely.get_parts(faces)
    inside = shapely.point_on_surface(faces)
    columns, rows = (np.floor(get(inside)).astype(int) for get in (shapely.get_x, shapely.get_y))
    components = faces[region.crop[rows, columns]]
    merged = shapely.simplify(shapely.multipolygons(components), tolerance, preserve_topology=True)
    moved = shapely.transform(merged, lambda points: points + np.array([region.left, region.top]))
    return [shapely.geometry.polygon.orient(each) for each in shapely.get_parts(moved)]


def rings(polygon: Any) -> list[Ring]:
    """Return the outline of a `shapely.Polygon`, then its holes, which turn the other way."""
    return [np.asarray(ring.coords)[:-1] for ring in (polygon.exterior, *polygon.interiors)]


def joined_ring(polygon: Any) -> Ring:
    """Return outline and holes as one line, for formats without holes.

    A hole is joined to the outline by a line that goes there and back. Tools fill such a line correctly, whether they
    use the even-odd or the non-zero rule.
    """
    joined, *holes = rings(polygon)
    for hole in holes:
        distances = ((joined[:, None] - hole[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        joined = np.concatenate([joined[: here + 1], hole[there:], hole[: there + 1], joined[here:]])
    return joined


def _edges(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Horizontal lines between pixels inside and outside, as long as possible: (N, 4), x0, y0, x1, y1.

    A line ends where the inside changes from above to below, at the corner where two pixels touch.
    """
    side = np.diff(mask.astype(np.int8), axis=0, prepend=0, append=0)  # (h + 1, w)
    changes = np.diff(side, axis=1, prepend=0, append=0) != 0  # (h + 1, w + 1)
    y, x = np.nonzero(changes)
    padded = np.pad(side, ((0, 0), (0, 1)))
    lines = (y[:-1] == y[1:]) & (padded[y[:-1], x[:-1]] != 0)
    ends: npt.NDArray[np.int64] = np.stack([x[:-1], y[:-1], x[1:], y[1:]], axis=1)[lines]
    return ends.astype(np.float64)
