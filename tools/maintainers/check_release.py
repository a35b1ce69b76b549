#!/usr/bin/env python3
"""Check that a tag can be released, and print its part of CHANGELOG.md, the notes of the release.

python tools/maintainers/check_release.py v0.1.0 https://github.com/me/san

The tag is "v" and the version of san/__init__.py. CHANGELOG.md has a section of this version with a date. The address
in pyproject.toml is that of the repository (tools/maintainers/set_address.py). Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def release_notes(repo: Path, tag: str, address: str) -> str:
    """Return the notes of a release.

    Raises:
        ValueError: tag, version, changelog and address do not agree.
    """
    version = _value(repo / "san/__init__.py", "__version__")
    if tag != f"v{version}":
        raise ValueError(
            f"the tag is {tag!r} but san/__init__.py has {version!r}; change the version, or tag v{version}"
        )
    known = _value(repo / "pyproject.toml", "Source")
    if address != known:
        raise ValueError(
            f"this repository is {address}, but pyproject.toml has {known}; "
            f"run python tools/maintainers/set_address.py {address}"
        )
    text = (repo / "CHANGELOG.md").read_text(encoding="utf-8")
    section = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)"
    found = re.search(section, text, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise ValueError(f'CHANGELOG.md has no section "## [{version}] - YYYY-MM-DD"; rename "## [Unreleased]"')
    return found[1].strip() + "\n"


def _value(file: Path, name: str) -> str:
    (value,) = re.findall(rf'^{name} = "(.+)"$', file.read_text(encoding="utf-8"), re.MULTILINE)
    return str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the notes; returns 1 if the tag cannot be released."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", help="v and the version")
    parser.add_argument("address", help="of the repository, as GitHub has it")
    args = parser.parse_args(arguments)
    try:
        print(release_notes(REPO, args.tag, args.address), end="")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
