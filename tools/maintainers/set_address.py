#!/usr/bin/env python3
"""Set the repository's address: in pyproject.toml, its one place, and in the files that have to repeat it.

python tools/maintainers/set_address.py https://github.com/me/san

Packages, badges, issue forms, the citation file and the documentation use the address. Every file that git tracks, or
would, is searched for the present one. The names of the changed files are printed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
HOST = "https://github.com/"


def address(repo: Path) -> str:
    """Return the present address, from pyproject.toml."""
    (found,) = re.findall(r'^Source = "(.+)"$', (repo / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return str(found)


def set_address(repo: Path, new: str) -> list[str]:
    """Replace owner and name of the present address wherever they stand; return the changed files.

    Raises:
        ValueError: the new address is none of GitHub.
    """
    if not re.fullmatch(rf"{HOST}[\w.-]+/[\w.-]+", new):
        raise ValueError(f"the address is {new!r} but must be {HOST}OWNER/NAME")
    old, name = re.escape(address(repo).removeprefix(HOST)), new.removeprefix(HOST).encode()
    pattern = re.compile(rf"(?<=github\.com/){old}(?![\w-])|(?<=google\.com/github/){old}(?![\w-])".encode())
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repo, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    changed = []
    for file in filter(None, listed.split("\0")):
        path = repo / file
        content = path.read_bytes() if path.is_file() else b""
        replaced = pattern.sub(name, content)
        if replaced != content:
            path.write_bytes(replaced)
            changed.append(file)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """Set the address; returns 1 if it is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help=f"{HOST}OWNER/NAME")
    try:
        print(*set_address(REPO, parser.parse_args(arguments).address), sep="\n")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
