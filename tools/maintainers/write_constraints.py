#!/usr/bin/env python3
"""Writes docker/constraints.txt: the versions of this environment for all that SAN and its extras need.

    python tools/maintainers/write_constraints.py    # in an environment of `./install.sh --dev` in which the tests pass

Packages that are not installed here, such as those of an extra that only one tool needs, are left out.
"""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[2]
PROJECT = "san-segmentation"
NOT_FOR_USERS = ("dev", "docs", "release", "test")
"""Extras whose packages no image contains."""


def versions_of(project: str, extras: set[str]) -> dict[str, str]:
    """Return the installed versions of everything a project needs, by canonical name, without the project."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(project, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(needed.name), each) for each in ("", *needed.extras)]
    del found[project]
    return found


def main() -> None:
    """Write the file."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    extras = {*(metadata.metadata(PROJECT).get_all("Provides-Extra") or ())}
    found = versions_of(PROJECT, extras.difference(NOT_FOR_USERS))
    lines = [
        f"# Versions that are tested together, on Python {platform.python_version()}; for both images.",
        "# Written by: python tools/maintainers/write_constraints.py",
        *(f"{name}=={version.split('+')[0]}" for name, version in sorted(found.items())),
    ]
    (REPO / "docker/constraints.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
