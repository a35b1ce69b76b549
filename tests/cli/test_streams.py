"""Standard streams that are closed, full, or without a character: no traceback, and a status that says how it went."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def shell(command: str, **environment: str) -> tuple[int, str]:
    """Status and standard error of a command of sh."""
    done = subprocess.run(
        ["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "ignore", **environment},
    )  # fmt: skip
    return done.returncode, done.stderr.decode()


SAN = f"'{sys.executable}' -m san"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (f"{SAN} models >&-", 0),
        (f"{SAN} models 2>&-", 0),
        (f"{SAN} models <&- >&- 2>&-", 0),
        (f"{SAN} --help >&-", 0),
        (f"{SAN} predict >&- 2>&-", 2),
        (f"{SAN} train --config-file no.yaml >&- 2>&-", 1),
    ],
)
def test_closed_streams(command: str, code: int) -> None:
    assert shell(command) == (code, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_a_full_disk_behind_the_output() -> None:
    assert shell(f"{SAN} models >/dev/full") == (1, "error: [Errno 28] No space left on device\n")


def test_an_encoding_without_a_character() -> None:
    code = "import sys; from san.cli.main import guarded; sys.exit(guarded(lambda: print('gr' + chr(246))))"
    python = f"""'{sys.executable}' -c "{code}" >&2"""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert shell(python, **ascii_only) == (0, "gr\\xf6\n")
    assert shell(python, PYTHONUTF8="1") == (0, "grö\n")


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Else what a library writes to standard output would land in it."""
    code = (
        "import os, sys; from san.cli.main import guarded; "
        f"sys.exit(guarded(lambda: os.write(1, b'x') and open('{tmp_path}/it', 'w').fileno() < 3))"
    )
    status, shown = shell(f"""'{sys.executable}' -c "{code}" >&- 2>&-""")
    assert (status, shown) == (0, "") and (tmp_path / "it").read_bytes() == b""


def test_a_pool_of_readers_that_leave() -> None:
    """`head` ends first."""
    assert shell(f"{SAN} models | head -1 >/dev/null")[1] == ""
