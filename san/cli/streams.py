"""Standard streams of a command: closed ones, pipes that nobody reads, encodings that lack a character, secrets."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings

from san.io.redaction import redact_terminal


def set_up() -> None:
    """Makes standard output and error usable, whatever the caller has done with them, and redacts what goes there.

    A closed stream (``san models >&-``) becomes the null device, so that no file that is opened later takes its number,
    and a character that the stream's encoding lacks (``LC_ALL=C``) is written as an escape.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    redact_terminal()
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")  # Pillow's; SAN has its own limits


def finish() -> None:
    """Writes out what standard output still holds.

    Raises:
        OSError: it cannot be written, and is dropped, so that Python does not report it once more at its end.
    """
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
        raise


def drop_output() -> None:
    """Sends what standard output still holds to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):  # a stream of a test, without a number
        os.dup2(null, sys.stdout.fileno())
    os.close(null)
