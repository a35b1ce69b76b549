"""TEST.LOG_REPORTS: the panel and the per-class table of each evaluation, for TensorBoard and Weights & Biases."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from san.d2.api import EventWriter, get_event_storage
from san.io.image_files import read_image

COLUMNS = ("class", "label_pixels", "predicted_pixels", "IoU", "ACC")
"""Of per_class.csv that are shown."""


@dataclass(frozen=True)
class Report:
    """What an evaluation has written for a data set.

    Attributes:
        dataset: its name.
        iteration: of the evaluation.
        panel: the picture; None where there is none.
        rows: a row for each class, as `COLUMNS`; a number is None where the class is absent.
    """

    dataset: str
    iteration: int
    panel: Path | None
    rows: list[list[Any]]


class NewReports:
    """Gives each evaluation once.

    Args:
        folder: OUTPUT_DIR.
        names: the data sets that are evaluated.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.names = names
        self._given: dict[str, int] = {}

    def take(self) -> list[Report]:
        """The evaluations since the last call; their files are those of the latest one."""
        found, latest = [], get_event_storage().latest()
        for name in self.names:
            iteration = latest.get(f"{name}/mIoU", (0.0, -1))[1]
            folder = self.folder / "inference" / name
            if iteration <= self._given.get(name, -1) or not (folder / "per_class.csv").is_file():
                continue
            self._given[name] = iteration
            panel = folder / "panel.png"
            found.append(Report(name, iteration, panel if panel.is_file() else None, _rows(folder / "per_class.csv")))
        return found


def _rows(path: Path) -> list[list[Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        content = [*csv.DictReader(file)]
    return [[row["class"], *(float(row[name]) if row[name] else None for name in COLUMNS[1:])] for row in content]


class ReportWriter(EventWriter):
    """Writes panels as images and tables as text for TensorBoard, into an event file beside that of the scalars.

    Args:
        folder: OUTPUT_DIR.
        reports: what to write.
    """

    def __init__(self, folder: Path, reports: NewReports) -> None:
        self.folder = folder
        self.reports = reports
        self._writer: Any = None

    def write(self) -> None:
        """Writes the evaluations since the last call."""
        for report in self.reports.take():
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # slow to import

                self._writer = SummaryWriter(str(self.folder), filename_suffix=".reports")
            if report.panel is not None:
                picture = np.asarray(read_image(report.panel))  # (H, W, 3)
                self._writer.add_image(f"{report.dataset}/panel", picture, report.iteration, dataformats="HWC")
            self._writer.add_text(f"{report.dataset}/per_class", as_markdown(report.rows), report.iteration)
            self._writer.flush()

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._writer is not None:
            self._writer.close()


def as_markdown(rows: list[list[Any]]) -> str:
    """A table that TensorBoard shows as one."""
    lines = [[*COLUMNS], ["---", *["---:"] * (len(COLUMNS) - 1)]]
    for name, labelled, predicted, *scores in rows:
        shown = str(name).replace("|", "\\|")
        lines.append(
            [shown, f"{labelled:.0f}", f"{predicted:.0f}", *("" if each is None else f"{each:.2f}" for each in scores)]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
