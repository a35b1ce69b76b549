#!/usr/bin/env python3
"""Run the tests with the oldest, a pinned and the newest releases of what SAN depends on, each in its own environment.

python tools/maintainers/check_versions.py                               # every row, about 15 minutes and 6 GB each
python tools/maintainers/check_versions.py --rows oldest -- tests/d2     # one row; what follows -- goes to pytest
python tools/maintainers/check_versions.py --detectron2 ~/src/detectron2 # again with Detectron2, built from a clone

The oldest releases are the minimums of pyproject.toml, the newest those of the package index. With Detectron2 each row
runs twice, first without it. Prints a table of versions and results at the end, and exits with 1 if a test failed. uv,
which `./install.sh --dev` installs, creates the environments and caches downloads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
_UV = (sys.executable, "-m", "uv")
_LOWEST = ("--resolution", "lowest-direct", "--editable")
ROWS = {
    "oldest": (*_LOWEST, ".[test]"),
    "oldest-demo": (*_LOWEST, ".[dev]"),  # Gradio requires later releases of some packages
    "torch-2.14": ("torch==2.14.1", "torchvision==0.29.1", "--editable", ".[dev]"),
    "newest": ("--upgrade", "--editable", ".[test]"),  # Gradio requires an older Pillow
    "newest-demo": ("--upgrade", "--editable", ".[dev]"),
}
"""The packages that uv installs for each row."""

SHOWN = ("torch", "torchvision", "timm", "open_clip_torch", "pillow", "numpy")


@dataclass(frozen=True)
class RowResult:
    """Result of the tests in one environment: versions, pytest's last line, and its exit code."""

    row: str
    detectron2: bool
    versions: tuple[str, ...]
    result: str
    code: int


class Environment:
    """A virtual environment for the tests.

    Args:
        folder: folder of the environment.
        python: version or interpreter.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python

    def make(self) -> None:
        """Create the environment, replacing an existing one."""
        self._run([*_UV, "venv", "--quiet", "--clear", "--python", self.python, str(self.folder)])

    def install(self, *arguments: str, **variables: str) -> None:
        """Run ``uv pip install``; uv, run as a module, would use its own environment.

        Raises:
            subprocess.CalledProcessError: a package cannot be installed; uv has printed the reason.
        """
        self._run([*_UV, "pip", "install", "--python", str(self.folder), *arguments], **variables)

    def test(self, arguments: Sequence[str]) -> tuple[str, int]:
        """Run pytest in the repository; returns its last line and its exit code."""
        process = subprocess.Popen(
            [self.folder / "bin" / "python", "-m", "pytest", "-q", "-n", "auto", *arguments],
            cwd=REPO, env=self._variables(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        last = ""
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
        return last.strip("= "), process.wait()

    def versions(self) -> tuple[str, ...]:
        """Return the versions of `SHOWN`."""
        code = f"from importlib.metadata import version\nprint(*map(version, {SHOWN!r}))"
        shown = subprocess.run(
            [self.folder / "bin" / "python", "-c", code], capture_output=True, text=True, check=True, cwd=self.folder
        )
        return tuple(shown.stdout.split())

    def _run(self, command: Sequence[str], **variables: str) -> None:
        print("+", *command, flush=True)
        subprocess.run(command, check=True, cwd=REPO, env=self._variables() | variables)

    def _variables(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CONDA_PREFIX")}
        return kept | {"VIRTUAL_ENV": str(self.folder), "PATH": path}


def check_row(row: str, args: argparse.Namespace) -> list[RowResult]:
    """Create the environment of a row and run the tests, without Detectron2 and, if given, with it."""
    environment = Environment(args.folder.resolve() / row, args.python)
    results = []
    for detectron2 in (False, True)[: 2 if args.detectron2 else 1]:
        versions = ("-",) * len(SHOWN)
        try:
            if detectron2:
                environment.install("setuptools", "wheel", "ninja")
                environment.install("--no-build-isolation", args.detectron2, CUDA_VISIBLE_DEVICES="")
            else:
                environment.make()
                environment.install(*ROWS[row])
            versions = environment.versions()
            result, code = environment.test(args.pytest)
        except subprocess.CalledProcessError as error:
            result, code = f"not installed: exit code {error.returncode}", 1
        results.append(RowResult(row, detectron2, versions, result, code))
        if code and versions[0] == "-":
            break
    return results


def table(results: Sequence[RowResult]) -> str:
    """Format the results as a Markdown table."""
    heads = ["row", "Detectron2", *SHOWN, "tests"]
    lines = [heads, ["---"] * len(heads)]
    lines += [[each.row, "yes" if each.detectron2 else "no", *each.versions, each.result] for each in results]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every row; returns 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--python", default="3.11", help="version or interpreter (default: %(default)s)")
    parser.add_argument("--detectron2", default="", metavar="SOURCE", help="path of a clone, or a git+https://... URL")
    parser.add_argument(
        "--folder", type=Path, default=REPO / ".versions", help="folder of the environments (default: %(default)s)"
    )
    parser.add_argument("pytest", nargs="*", metavar="-- ARGUMENT", help="arguments of pytest")
    args = parser.parse_args(arguments)
    results = [result for row in args.rows for result in check_row(row, args)]
    print(table(results))
    return int(any(result.code for result in results))


if __name__ == "__main__":
    sys.exit(main())
