"""install.sh, make and .ci/run: what they decide, without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def dry_run(*options: str, folder: Path = REPO, **env: str) -> subprocess.CompletedProcess[str]:
    """install.sh --dry-run in a copy of its folder, by default with the running Python."""
    clean = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    return subprocess.run(
        ["bash", str(folder / "install.sh"), "--dry-run", *options],
        env={**clean, "PYTHON": sys.executable, "SAN_DETECTRON2": "skip", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("script", ["install.sh", ".ci/run"])
def test_scripts_parse_and_are_executable(script):
    subprocess.run(["bash", "-n", str(REPO / script)], check=True)
    assert os.access(REPO / script, os.X_OK)


def test_installs_the_project_then_detectron2():
    result = dry_run("--dev", SAN_DETECTRON2="")
    assert result.returncode == 0, result.stderr
    commands = [line for line in result.stdout.splitlines() if line.startswith("+")]
    assert any(line.endswith("--editable .[dev]") for line in commands)
    assert "Detectron2" in result.stdout or "detectron2" in commands[-1]


@pytest.mark.parametrize(
    ("options", "extras"),
    [((), "[train]"), (("--demo",), "[train,demo]"), (("--dev", "--demo"), "[dev]"), (("--demo", "--dev"), "[dev]")],
)
def test_extras(options, extras):
    result = dry_run(*options)
    assert result.returncode == 0, result.stderr
    (command,) = (line for line in result.stdout.splitlines() if line.startswith("+") and "--editable" in line)
    assert command.endswith(f"--editable .{extras}")


def test_without_detectron2_one_line_says_so():
    result = dry_run()
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "etectron2" in line]
    assert len(lines) == 1
    assert "stand-in serves" in lines[0]


def test_an_old_python_is_refused(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *-V*) echo Python 3.8.1;; *) exit 1;; esac\n')
    python.chmod(0o755)
    result = dry_run(PYTHON=str(python))
    assert result.returncode == 1
    assert "Python 3.8.1 is too old; SAN needs Python 3.10 to 3.13" in result.stderr


def test_an_externally_managed_python_gets_a_venv(tmp_path):
    """A Python whose probe says "externally managed" leads to .venv, which the script names."""
    python = tmp_path / "python"
    answer = '*EXTERNALLY-MANAGED*) echo "externally managed (PEP 668)";;'
    python.write_text(f'#!/bin/sh\ncase "$*" in {answer} *) exec {sys.executable} "$@";; esac\n')
    python.chmod(0o755)
    result = dry_run(PYTHON=str(python))
    assert result.returncode == 0, result.stderr
    assert "is externally managed (PEP 668): making .venv" in result.stdout
    assert f"+ {python} -m venv .venv" in result.stdout


def test_unknown_option():
    result = dry_run("--cuda")
    assert result.returncode == 2
    assert "unknown option '--cuda'; known: --demo, --dev" in result.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
@pytest.mark.parametrize("active", [False, True])
def test_make_prefers_the_active_environment(tmp_path, active):
    shutil.copy(REPO / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    left_out = (
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "PYTHON",
        "MAKEFLAGS",
        "MAKEOVERRIDES",
    )  # also of a make around the tests
    env = {key: value for key, value in os.environ.items() if key not in left_out}
    env |= {"VIRTUAL_ENV": "/somewhere"} if active else {}
    result = subprocess.run(
        ["make", "--no-print-directory", "-n", "check"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    expected = "python3" if active else ".venv/bin/python"
    commands = [line for line in result.stdout.splitlines() if line.startswith(f"{expected} -m ")]  # not the audit's
    tools = ("ruff check .", "ruff format --check .", "mypy", "pytest -n auto")
    assert commands == [f"{expected} -m {tool}" for tool in tools]


def test_ci_runs_the_readmes_test_command():
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    command = "./install.sh --dev && make check"
    assert command in readme
    assert re.search(re.escape('./install.sh --dev "$@" && make check'), (REPO / ".ci/run").read_text())
