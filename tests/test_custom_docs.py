"""docs/custom_dataset.md, executed as it is written: files, commands and snippet, in a folder of their own.

All commands run in this process, one after the other. Only the length of the training is cut, to `ITERATIONS`.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from tests.d2.conftest import no_charts

__all__ = ["no_charts"]

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs/custom_dataset.md"
TRAINING = "OUTPUT_DIR output/toy/run"
"""What the one command that trains ends with."""

ITERATIONS = 3


def blocks() -> list[tuple[str, str]]:
    """Language and content of every block of code, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs ``python SCRIPT ...``, ``python -m MODULE ...`` or ``san ...`` in this process; it must end with 0."""
    program, *arguments = shlex.split(line)
    if program == "san":
        arguments = ["-m", "san", *arguments]
    else:
        assert program == "python", line
    module = arguments[0] == "-m"
    name, arguments = (arguments[1], arguments[2:]) if module else (arguments[0], arguments[1:])
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    status: object = 0
    try:
        runpy.run_module(name, run_name="__main__") if module else runpy.run_path(name, run_name="__main__")
    except SystemExit as end:
        status = end.code
    assert status in (0, None), f"{line}: {status}"


@pytest.mark.usefixtures("no_charts")
def test_the_page_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tools", "configs", "san"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.chdir(tmp_path)
    commands = trained = 0
    for language, content in blocks():
        if language == "yaml":
            Path(content.splitlines()[0].lstrip("# ")).write_text(content)
        elif language == "python":
            scope: dict[str, object] = {}
            exec(content, scope)
            assert scope["names"] == ["toy_train", "toy_val"]
        elif language == "bash":
            for line in content.replace("\\\n", " ").splitlines():
                shortened = line.endswith(TRAINING)
                run_command(f"{line} SOLVER.MAX_ITER {ITERATIONS}" if shortened else line, monkeypatch)
                commands += 1
                trained += shortened
    assert (commands, trained) == (7, 1)
    before, after, again = (
        json.loads(Path(f"output/toy/{run}/inference/toy_val/metrics.json").read_text())
        for run in ("before", "run", "again")
    )
    assert before["mIoU"] > 25  # the words alone; a guess among five classes that all occur would be below 17
    assert after["mIoU"] != before["mIoU"]
    assert again == after
    for split in ("train", "val"):
        assert list(Path(f"output/toy/check/toy_{split}").glob("*.png"))
    assert list(Path("output/toy/words").glob("00000*"))
    assert list(Path("output/toy/others").glob("00000*"))


def test_the_page_explains_every_key() -> None:
    from san.data.custom import KEYS

    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in KEYS)
