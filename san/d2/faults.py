"""What training does about data that cannot be read and numbers that are not finite: go on, count, and stop in time.

All processes decide alike: what one has met is told to the others before anything depends on it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from san.d2.api import comm
from san.d2.batches import BadSample, Sample
from san.d2.checkpointer import write_checkpoint
from san.d2.outcome import NonFiniteError
from san.files import replacing, write_text

logger = logging.getLogger("san.d2.faults")

StepSource = dict[str, list[Any]]
"""Where the samples of an accumulation step come from; see `sources_of`."""

MAX_NAMED_FILES = 8
"""Files that a message names."""


class BadData:
    """Counts the samples of a data set that cannot be read.

    Args:
        total: samples of the data set.
        max_share: of them that may be bad, 0..1.
        folder: OUTPUT_DIR, where ``bad_data.json`` lists them.
    """

    def __init__(self, total: int, max_share: float, folder: Path) -> None:
        self.total = total
        self.max_share = max_share
        self.folder = folder
        self.found: dict[str, str] = {}

    def note(self, found: Iterable[BadSample]) -> None:
        """Logs what is new among bad samples, and stops training where there are too many.

        Args:
            found: the same on every process.

        Raises:
            ValueError: more than the set share cannot be read.
        """
        new = {bad.file_name: bad.message for bad in found if bad.file_name not in self.found}
        if not new:
            return
        self.found |= new
        share = len(self.found) / self.total
        messages = list(new.values())
        more = f" and {len(messages) - MAX_NAMED_FILES} more" if len(messages) > MAX_NAMED_FILES else ""
        logger.warning(
            "%s%s; another sample takes its place (%d of %d cannot be read)",
            "; ".join(messages[:MAX_NAMED_FILES]),
            more,
            len(self.found),
            self.total,
        )
        if comm.is_main_process():
            _write_json(self.folder / "bad_data.json", {"total": self.total, "bad": self.found})
        if share > self.max_share:
            raise ValueError(
                f"{len(self.found)} of {self.total} training samples ({100 * share:.2g} %) cannot be read, more than "
                f"DATALOADER.MAX_BAD_SHARE {self.max_share}: {'; '.join([*self.found.values()][:MAX_NAMED_FILES])}"
                f"{'; ...' if len(self.found) > MAX_NAMED_FILES else ''}. All are listed in "
                f"{self.folder / 'bad_data.json'}; mend or remove them, or raise DATALOADER.MAX_BAD_SHARE, and go on "
                "with --resume"
            )


def sources_of(batches: Iterable[list[Sample]]) -> list[StepSource]:
    """What a dump says of batches, one per accumulation step: ``positions`` in the stream, and ``files``."""
    return [
        {"positions": [s.get("position") for s in batch], "files": [str(s.get("file_name")) for s in batch]}
        for batch in batches
    ]


class NonFiniteUpdates:
    """Counts the updates that were left out as a loss or gradient was not finite.

    Args:
        model: whose weights are written where training stops; not wrapped.
        most: so many in a row stop training.
        seed: of the sample stream.
        folder: OUTPUT_DIR.
    """

    def __init__(self, model: nn.Module, most: int, seed: int, folder: Path) -> None:
        self.model = model
        self.most = most
        self.seed = seed
        self.folder = folder
        self.total = 0
        self.in_a_row: list[dict[str, Any]] = []

    def skipped(self, iteration: int, error: NonFiniteError, steps: Sequence[StepSource]) -> None:
        """Notes an update that was left out; every process must call it.

        Args:
            iteration: its number.
            error: what was wrong in this process.
            steps: where this process's samples come from, by accumulation step.

        Raises:
            FloatingPointError: it is one too many in a row; a dump for `san.cli.replay` is written.
        """
        mine = {
            "process": comm.get_rank(),
            "problem": error.problem,
            "losses": {name: plain(value) for name, value in error.losses.items()},
            "grad_norm": plain(error.norm),
            "steps": [*steps],
        }
        everyone = comm.all_gather(mine)
        self.total += 1
        self.in_a_row.append({"iteration": iteration, "processes": everyone})
        problems = "; ".join(dict.fromkeys(each["problem"] for each in everyone))
        files = [file for each in everyone for step in each["steps"] for file in step["files"]]
        named = ", ".join(files[:MAX_NAMED_FILES]) + (", ..." if len(files) > MAX_NAMED_FILES else "")
        what = f"iteration {iteration}, images {named}: {problems}"
        if len(self.in_a_row) < self.most:
            logger.warning("%s. The update is left out (%d in a row, %d in all)", what, len(self.in_a_row), self.total)
            return
        dump = self._dump(iteration)
        raise FloatingPointError(
            f"{what}. {len(self.in_a_row)} updates in a row (SOLVER.MAX_NONFINITE) were left out and training stops, "
            f"earlier checkpoints are untouched; python tools/replay_batch.py {dump} computes these batches again; "
            "lower SOLVER.BASE_LR, or set SOLVER.AMP.DTYPE bf16 or SOLVER.AMP.ENABLED False, or look at these images, "
            "then go on with --resume"
        )

    def none_now(self) -> bool:
        """Whether the latest update was done."""
        return not self.in_a_row

    def went_well(self) -> None:
        """An update was done: the row ends."""
        self.in_a_row.clear()

    def _dump(self, iteration: int) -> Path:
        """Writes ``nonfinite_<iteration>.json`` and the weights beside it; returns the former's path."""
        path = self.folder / f"nonfinite_{iteration:07d}.json"
        if not comm.is_main_process():
            return path
        weights = path.with_suffix(".pth")  # the same before all of these updates, as none was done
        try:
            write_checkpoint({"model": self.model.state_dict(), "iteration": iteration}, weights)
        except OSError as error:
            logger.warning("%s cannot be written (%s); replay with MODEL.WEIGHTS of a checkpoint", weights, error)
        _write_json(path, {"seed": self.seed, "weights": weights.name, "iterations": self.in_a_row})
        return path


def plain(value: float | None) -> float | str | None:
    """A number as JSON can hold it: "nan", "inf" and "-inf" become text."""
    return value if value is None or math.isfinite(value) else str(value)


def _write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole; where it cannot be written, a warning says so, as its maker has more to tell."""
    try:
        with replacing(path) as file:
            write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, error.strerror or error)
