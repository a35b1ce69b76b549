"""Options of panoptic segments, of `san predict` and `san label`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from san.io.errors import require_extra

if TYPE_CHECKING:
    from san.panoptic_merge import PanopticOptions
    from san.vocabulary.vocabulary import Vocabulary

THINGS_HELP = (
    "classes whose objects are segments of their own, separated by commas, or a label set that knows its things; each "
    "other class, stuff, is one segment"
)

_COMPONENTS = "components"
_THRESHOLDS = ("object_threshold", "overlap_threshold")


def share_option(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def add_segment_options(group: argparse._ActionsContainer) -> None:
    """Add the options of segments beside --things."""
    group.add_argument(
        "--segments",
        choices=(_COMPONENTS, "queries", "connected"),
        default=_COMPONENTS,
        help="what a segment of a thing is: a connected component of the label map; what one query of the network "
        "shows, for a model trained with a mask per thing; or a connected component of a query (default: %(default)s; "
        "docs/panoptic.md)",
    )
    for name, meaning in zip(
        _THRESHOLDS,
        ("class probability that a query needs", "share of its mask that a query must win from the others"),
        strict=True,
    ):
        group.add_argument(
            _option(name),
            type=share_option,
            metavar="SHARE",
            help=f"{meaning} (default: that of --segments, docs/panoptic.md)",
        )


def add_min_area_option(group: argparse._ActionsContainer) -> None:
    """Add --min-area."""
    group.add_argument(
        "--min-area",
        type=int,
        default=0,
        metavar="PIXELS",
        help="drop connected components, and segments of queries, that are smaller (default: %(default)s)",
    )


def check_segments(args: argparse.Namespace, vocabulary: Vocabulary) -> None:
    """Check the options before any work.

    Raises:
        ValueError: a thing is none of the classes, a value is out of range, there are options of segments without
            things or of queries without queries, or queries of several sizes or models.
        MissingExtraError: SciPy or Shapely cannot be imported.
    """
    given = [_option(name) for name in _THRESHOLDS if getattr(args, name) is not None]
    if args.things is None:
        given += ["--segments"] if args.segments != _COMPONENTS else []
        if given:
            raise ValueError(f"{given[0]} is of segments, and there are none; give --things")
        return
    require_extra("label", "--things", "scipy", "shapely")
    from san.labelling.regions import RegionOptions, thing_indices

    RegionOptions(True, args.min_area, 0.0, thing_indices(args.things, [each.name for each in vocabulary.free]))
    if args.segments == _COMPONENTS and given:
        raise ValueError(f"{given[0]} is of queries; give --segments queries or --segments connected")
    several = args.flip or len(args.scales) > 1 or Path(args.model).suffix.lower() in (".yaml", ".yml")
    if args.segments != _COMPONENTS and several:
        raise ValueError(
            f"--segments {args.segments} needs the queries of one model and size, but several are averaged; leave "
            "--flip out, give one size and one model, or give --segments components"
        )


def segment_arguments(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the arguments of `Segmentation.segments`; None without --things."""
    if args.things is None:
        return None
    return {
        "things": args.things,
        "source": args.segments,
        "min_area": args.min_area,
        **{name: getattr(args, name) for name in _THRESHOLDS},
    }


def merging_of(args: argparse.Namespace) -> PanopticOptions | None:
    """Return how queries become segments; None for segments of the label map."""
    from san.inference.segments import merging_options

    if args.segments == _COMPONENTS:
        return None
    return merging_options(
        connected=args.segments == "connected", **{name: getattr(args, name) for name in _THRESHOLDS}
    )


def segment_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options on which segments depend, to compare with those of another job; none without --things."""
    found = segment_arguments(args) or {}
    return {"segments" if name == "source" else name: value for name, value in found.items()}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
