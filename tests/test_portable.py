"""SAN on Windows, as far as Linux can show it: without what Python has only on Unix, it imports and predicts.

The job "smoke" of .github/workflows/ci.yml runs the same script on Windows itself.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.forks import Fork

REPO = Path(__file__).resolve().parent.parent
UNIX_MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
UNIX_NAMES: dict[Any, tuple[str, ...]] = {
    signal: ("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2", "alarm"),
    os: (
        "O_NONBLOCK", "P_PID", "WEXITED", "WNOHANG", "WNOWAIT", "fchmod", "fork", "getegid", "geteuid", "getgid",
        "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "nice", "register_at_fork", "sched_getaffinity",
        "set_blocking", "setsid", "statvfs", "sysconf", "uname", "waitid",
    ),
}  # fmt: skip


def smoke() -> ModuleType:
    """The script that also runs on Windows itself."""
    spec = importlib.util.spec_from_file_location("smoke", REPO / ".ci/smoke.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_on_windows() -> None:
    """Take SAN's modules out of this process, and what Windows lacks."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "san"]:
        del sys.modules[name]
    for name in UNIX_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in UNIX_NAMES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    library = ctypes.CDLL
    ctypes.CDLL = lambda name, *rest, **more: library(os.fspath(name), *rest, **more)  # type: ignore[misc,assignment]
    sys.platform = "win32"


def run(action: Callable[[], None], folder: Path) -> None:
    process = Fork(action, folder / "log")
    output, _ = process.communicate()
    assert process.returncode == 0, output


def test_every_module_imports_and_predict_runs_without_what_windows_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def action() -> None:
        here = smoke()
        here.import_all()  # what other packages need of Unix, they have
        as_on_windows()
        here.import_all()
        here.predict()
        files = importlib.import_module("san.io.files")
        files.write_whole(Path("durable.txt"), "kept\n", durable=True)
        assert importlib.import_module("san.benchmark.machine").load_average() is None

    run(action, tmp_path)
    assert Path("durable.txt").read_text() == "kept\n"


def test_a_module_that_only_unix_has_is_found_by_this_test(tmp_path):
    """It cannot pass because nothing was hidden."""

    def action() -> None:
        as_on_windows()
        with pytest.raises(ImportError):
            importlib.import_module("fcntl")
        assert not hasattr(signal, "SIGUSR1")
        assert not hasattr(os, "fork")
        with pytest.raises(TypeError):
            ctypes.CDLL(None)

    run(action, tmp_path)


def test_no_module_imports_what_only_unix_has_when_it_is_imported():
    """Inside a function it may, if it handles the ImportError."""
    for path in sorted((REPO / "san").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not set(names) & set(UNIX_MODULES), f"{path}: import it where it is used"
