"""Stands in for `detectron2.utils.logger`: a named logger with colour on the terminal and a file per worker."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from termcolor import colored

_DATE_FORMAT = "%m/%d %H:%M:%S"
_PREFIX_STYLES: dict[int, list[str]] = {
    logging.WARNING: ["blink"],
    logging.ERROR: ["blink", "underline"],
    logging.CRITICAL: ["blink", "underline"],
}


class _TerminalFormatter(logging.Formatter):
    """One line per message, with the logger's root name abbreviated and warnings in red."""

    def __init__(self, root_name: str, abbreviation: str) -> None:
        prefix = colored("[%(asctime)s %(name)s]: ", "green")
        super().__init__(prefix + "%(message)s", datefmt=_DATE_FORMAT)
        self._root_name = f"{root_name}."
        self._abbreviation = f"{abbreviation}." if abbreviation else ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        full_name = record.name
        if full_name.startswith(self._root_name):
            record.name = self._abbreviation + full_name[len(self._root_name) :]
        line = super().formatMessage(record)
        record.name = full_name  # the record is also passed to the file's handler
        if record.levelno in _PREFIX_STYLES:
            line = f"{colored(record.levelname, 'red', attrs=_PREFIX_STYLES[record.levelno])} {line}"
        return line


def _log_file(output: str, distributed_rank: int) -> Path:
    """The file to log to; makes its folder."""
    path = Path(output)
    if path.suffix not in (".txt", ".log"):
        path = path / "log.txt"
    if distributed_rank > 0:
        path = path.with_name(f"{path.name}.rank{distributed_rank}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
) -> logging.Logger:
    """Send a logger's messages to the terminal and to a file; repeated calls add no further handlers.

    Args:
        output: a folder, in which ``log.txt`` is written, or a file that ends in ``.txt`` or ``.log``; None for no
            file. Worker r > 0 writes its own file, with ``.rank<r>`` behind its name.
        distributed_rank: this worker's number; only 0 writes to the terminal.
        color: whether the terminal shows colour (where it can).
        name: of the logger.
        abbrev_name: abbreviation of the name on the terminal; ``""`` omits it. By default ``d2`` for
            ``detectron2``, and the name itself for others.

    Returns:
        The logger; it passes everything from DEBUG on, and nothing to its parents.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE_FORMAT)
    streams = [handler.stream for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]
    if distributed_rank == 0 and sys.stdout not in streams:
        terminal = logging.StreamHandler(stream=sys.stdout)
        terminal.setFormatter(_TerminalFormatter(name, abbrev_name) if color else plain)
        logger.addHandler(terminal)
    if output is not None:
        path = _log_file(output, distributed_rank)
        files = [handler.baseFilename for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        if os.path.abspath(path) not in files:
            to_file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
            to_file.setFormatter(plain)
            logger.addHandler(to_file)
    return logger
