"""The one reader of a run's metrics.json, on lines that no run has written."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from san.d2.train.metrics_file import _append, evaluated_at, last_logged, logged, take_out
from san.data.metrics_lines import metrics_lines, parse_line
from san.visualize.plots import read_curves

ODD = [
    "", "null", "3", "[1]", '"x"', "{}", '{"lr": 1}', '{"iteration": null}', '{"iteration": "3"}', '{"iteration": 1.5}',
    '{"iteration": -1}', '{"iteration": true}', '{"iteration": [1]}', '{"iteration": NaN}', '{"iteration": 1e400}',
    f'{{"iteration": {10**30}}}', f'{{"iteration": {"9" * 5000}}}', '{"iteration": 3', "[" * 100_000, "\0",
    "{" * 50_000, '{"iteration": 5, "lr": 1} trailing',
]  # fmt: skip


@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
def test_an_odd_line_is_no_record(line: str) -> None:
    assert parse_line(line) is None


def test_only_numbers_are_values() -> None:
    line = '{"iteration": 3, "lr": 0.5, "a": NaN, "b": null, "c": "x", "d": [1], "e": true, "f": 7, "g": 1%s}'
    row = parse_line(line % ("0" * 400))
    assert row is not None and math.isnan(row.pop("a"))
    assert row == {"iteration": 3, "lr": 0.5, "f": 7}


def test_every_reader_passes_odd_lines_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    good = '{"iteration": 2, "lr": 0.1, "voc/mIoU": 5.0}'
    path.write_text("\n".join([*ODD, good, '{"iteration": 4, "lr": 0.1}', *ODD]), encoding="utf-8")
    with open(path, "ab") as file:
        file.write(b"\xff\xfe" + b"x" * 3_000_000)
    assert [row["iteration"] for row in logged(path)] == [2, 4] and last_logged(path) == 4
    assert evaluated_at(path, 2, ["voc"]) and not evaluated_at(path, 4, ["voc"])
    assert read_curves(path)["lr"] == ([2, 4], [0.1, 0.1])
    take_out(path, 3, 9)
    assert path.read_text() == good + "\n"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match="metrics.json does not exist"):
        next(metrics_lines(path))
    assert logged(path) == []
    take_out(path, 0, 1)
    with pytest.raises(OSError):
        _append(b"x", path)
