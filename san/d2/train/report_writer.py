"""TEST.LOG_REPORTS: logs panel and per-class table of each evaluation to TensorBoard and Weights & Biases."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from san.d2.api import EventWriter, get_event_storage
from san.io.image_files import read_image

COLUMNS = ("class", "label_pixels", "predicted_pixels", "IoU", "ACC")
"""Columns of per_class.csv that are logged."""


@dataclass(frozen=True)
class Report:
    """Results of an evaluation on a data set.

    Attributes:
        dataset: name of the data set.
        iteration: iteration of the evaluation.
        panel: path of the picture; None if there is none.
        rows: a row of `COLUMNS` per class; a number is None if the class is absent.
    """

    dataset: str
    iteration: int
    panel: Path | None
    rows: list[list[Any]]


class NewReports:
    """Returns each evaluation once.

    Args:
        folder: OUTPUT_DIR.
        names: the evaluated data sets.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.names = names
        self._given: dict[str, int] = {}

    def take(self) -> list[Report]:
        """Return the evaluations since the last call; their files are those of the latest one."""
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
    """Writes panels as images and tables as text to a separate TensorBoard event file.

    Args:
        folder: OUTPUT_DIR.
        reports: reports to write.
    """

    def __init__(self, folder: Path, reports: NewReports) -> None:
        self.folder = folder
        self.reports = reports
        self._writer: Any = None

    def write(self) -> None:
        """Write the evaluations since the last call."""
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
        """Close the file, if there is one."""
        if self._writer is not None:
            self._writer.close()


def as_markdown(rows: list[list[Any]]) -> str:
    """Return the rows as a Markdown table, which TensorBoard renders."""
    lines = [[*COLUMNS], ["---", *["---:"] * (len(COLUMNS) - 1)]]
    for name, labelled, predicted, *scores in rows:
        shown = str(name).replace("|", "\\|")
        lines.append(
            [shown, f"{labelled:.0f}", f"{predicted:.0f}", *("" if each is None else f"{each:.2f}" for each in scores)]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
