"""Counts and lists training samples that cannot be read, and stops training if there are too many."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from san.d2.api import comm
from san.d2.data.batches import BadSample
from san.io.errors import listed
from san.io.files import write_whole

logger = logging.getLogger("san.d2.bad_data")

MAX_NAMED_FILES = 8
"""Maximum number of files in a message."""


class BadData:
    """Counts the samples of a data set that cannot be read.

    Args:
        total: number of samples of the data set.
        max_share: share of samples that may be unreadable, 0..1.
        folder: OUTPUT_DIR, where ``bad_data.json`` lists them.
    """

    def __init__(self, total: int, max_share: float, folder: Path) -> None:
        self.total = total
        self.max_share = max_share
        self.folder = folder
        self.found: dict[str, str] = {}

    def note(self, found: Iterable[BadSample]) -> None:
        """Log new bad samples, and stop training if there are too many.

        Args:
            found: the bad samples, the same in every process.

        Raises:
            ValueError: more than the allowed share cannot be read.
        """
        new = {bad.file_name: bad.message for bad in found if bad.file_name not in self.found}
        if not new:
            return
        self.found |= new
        share = len(self.found) / self.total
        logger.warning(
            "%s; using another sample instead (%d of %d cannot be read)",
            listed(new.values(), MAX_NAMED_FILES, "; "),
            len(self.found),
            self.total,
        )
        if comm.is_main_process():
            write_json(self.folder / "bad_data.json", {"total": self.total, "bad": self.found})
        if share > self.max_share:
            raise ValueError(
                f"{len(self.found)} of {self.total} training samples ({100 * share:.2g} %) cannot be read, more than "
                f"DATALOADER.MAX_BAD_SHARE {self.max_share}: {listed(self.found.values(), MAX_NAMED_FILES, '; ')}. "
                f"All are listed in {self.folder / 'bad_data.json'}; fix or remove them, or raise "
                "DATALOADER.MAX_BAD_SHARE, and resume with --resume"
            )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; logs a warning if that fails, as the caller has more to report."""
    try:
        write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, error.strerror or error)
