"""Prepares the standard streams of a command: closed streams, closed pipes, missing characters, secrets."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings

from san.io.redaction import redact_terminal


def set_up() -> None:
    """Make standard output and error usable, and redact secrets in them.

    A closed stream (``san models >&-``) becomes the null device, so that a later file does not get its number.
    Characters that the encoding lacks (``LC_ALL=C``) are escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    redact_terminal()
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")  # Pillow's; SAN has its own limits


def finish() -> None:
    """Flush standard output.

    Raises:
        OSError: it cannot be written; it is then dropped, so that Python does not report it again at exit.
    """
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
        raise


def drop_output() -> None:
    """Flush standard output to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):  # a stream of a test, without a number
        os.dup2(null, sys.stdout.fileno())
    os.close(null)
