"""The command `san`: help without PyTorch, errors in one line, exit codes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from san import __version__
from san.cli.main import COMMANDS, guarded, main, make_parser

REPO = Path(__file__).resolve().parents[2]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPO), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_help_needs_the_standard_library_only() -> None:
    code = (
        "import sys\n"
        "from san.cli.main import main\n"
        "before = set(sys.modules)\n"
        "assert main(['--help']) == 0\n"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert not loaded, loaded\n"
        "assert main(['models', '--json']) == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'open_clip', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


def test_python_m_san() -> None:
    done = python("-m", "san", "--version")
    assert (done.returncode, done.stdout) == (0, f"san {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "usage: san"), (["predct"], "invalid choice: 'predct'"), (["predict"], "IMAGE_OR_FOLDER"), (["--x"], "--x")],
)
def test_a_wrong_command_line_is_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.out + shown.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_whole_help(command: str) -> None:
    shown = make_parser(importlib.import_module(f"san.cli.{command}"), f"san {command}").format_help()
    assert f"\n  san {command}" in shown, "no example"
    assert "xit code" in shown
    assert "--traceback" in shown
    options = [line for line in shown.splitlines() if line.startswith("  -")]
    assert len(options) >= 2


def fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (ValueError("a\n  b"), 1, "error: a b\n"),
        (FileNotFoundError("gone"), 1, "error: gone\n"),
        (MemoryError(), 1, "error: MemoryError\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_is_one_line(error: BaseException, code: int, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: fail(error)) == code
    assert capsys.readouterr().err == shown
    if code == 1:
        guarded(lambda: fail(error), show_traceback=True)
        assert "Traceback" in capsys.readouterr().err


def test_a_defect_shows_its_trace() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_a_closed_pipe_is_quiet() -> None:
    reader = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'san', 'models'], stdout=-1, stderr=-1)"
    )
    done = python("-c", f"{reader}; p.stdout.close(); print(p.wait(), p.stderr.read())")
    assert done.stdout == "1 b''\n", done.stderr


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "san_vit_b_16.pth").touch()
    assert main(["models", "--cache-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for part in ("shapes", "4.9 MB", "MIT", "631.4 MB", str(tmp_path / "san_vit_b_16.pth"), "1746.7 MB"):
        assert part in shown
    assert "not on this machine: san_vit_large_14.pth of https://huggingface.co/Mendel192/san" in shown
