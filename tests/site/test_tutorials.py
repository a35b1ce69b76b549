"""docs/index.md and docs/tutorials.md, run as written with shorter training; what needs data or weights is parsed."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from san.cli.main import make_parser
from tests.pictures import check_picture
from tests.test_custom_docs import run_command

REPO = Path(__file__).resolve().parents[2]
INSTALLS = ("pip install", "./install.sh")
SHORT = "SOLVER.MAX_ITER 3 DATASETS.TEST_SUBSET 4"
"""What is added to a training."""


def blocks(text: str) -> list[tuple[str, str, bool]]:
    """Language and content of every block of code, and whether the paragraph before it says that it needs something."""
    found = re.findall(r"((?:^[^\n`]+\n)*)\n?^```(\w+)\n(.*?)^```", text, re.M | re.S)
    return [(language, content, before.lstrip().startswith("**Needs ")) for before, language, content in found]


def commands(content: str) -> list[str]:
    lines = [shlex.split(line, comments=True) for line in content.replace("\\\n", " ").splitlines()]
    return [shlex.join(line) for line in lines if line]


def section(title: str) -> str:
    """The text of a section of the tutorials."""
    text = (REPO / "docs/tutorials.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return str(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's, in which the pages' first commands have run."""
    place = tmp_path_factory.mktemp("tutorials")
    for name in ("tools", "configs", "san", "examples"):
        (place / name).symlink_to(REPO / name)
    return place


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, object]]:
    """Runs the blocks of a text in the folder; returns what the snippets have defined."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))

    def execute(text: str) -> dict[str, object]:
        scope: dict[str, object] = {}
        for language, content, needs in blocks(text):
            if language == "python" and "register" in content:
                Path("my_parts.py").write_text(content, encoding="utf-8")
            elif language == "python":
                exec(content, scope)
            elif language == "bash" and not needs:
                for line in commands(content):
                    if not line.startswith(INSTALLS):
                        run_command(f"{line} {SHORT}" if line.startswith("san train") else line, monkeypatch)
        return scope

    return execute


@pytest.fixture
def pictures(folder: Path, run: Callable[[str], dict[str, object]]) -> None:
    """The first commands of the page."""
    if not (folder / "toy").exists():
        run((REPO / "docs/tutorials.md").read_text(encoding="utf-8").split("\n## ")[0])


@pytest.mark.usefixtures("pictures")
def test_the_landing_page_runs(run: Callable[[str], dict[str, object]]) -> None:
    text = (REPO / "docs/index.md").read_text(encoding="utf-8")
    scope = run(re.sub(r"^python -m san.shapes.*\n", "", text, flags=re.M))  # as the tutorials have it
    assert len(list(Path("toy/masks").glob("*_overlay.png"))) == 6
    assert Path("toy/overlay.png").is_file()
    assert min(scope["result"].areas().values()) > 0.05  # type: ignore[attr-defined]


def test_both_pages_make_the_same_pictures() -> None:
    pages = [(REPO / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("index", "tutorials")]
    first, second = (re.findall(r"^(python -m san.shapes .*?) +#", page, re.M) for page in pages)
    assert first == second
    assert len(first) == 1


@pytest.mark.usefixtures("pictures")
def test_label_my_photos(run: Callable[[str], dict[str, object]]) -> None:
    run(re.sub(r"^san check .*\n", "", section("Label my photos"), flags=re.M))
    assert Path("toy/labels/coco/annotations/instances_train.json").is_file()
    labels = np.asarray(Image.open("toy/labels/png/labels/00000.png"))
    truth = np.asarray(Image.open("toy/shapes/annotations/val_seen/00000.png"))
    assert labels.shape == truth.shape


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_label_my_photos_and_check_the_labels(folder: Path, run: Callable[[str], dict[str, object]]) -> None:
    """The whole section; its charts take most of the time."""
    shutil.rmtree(folder / "toy/labels", ignore_errors=True)
    run(section("Label my photos"))
    check_picture(Path("toy/check/labels_train/samples.png"), "tutorial_check.png", width=720)


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_my_own_data_set(folder: Path, run: Callable[[str], dict[str, object]]) -> None:
    if not (folder / "toy/labels").exists():
        run(section("Label my photos"))
    run(section("My own data set"))
    assert len(list(Path("toy/tuned_masks").glob("*_overlay.png"))) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_extend_a_part(run: Callable[[str], dict[str, object]]) -> None:
    run(section("Extend a part"))
    assert "half" in Path("toy/half/config.yaml").read_text()
    assert len(list(Path("toy/half_masks").glob("*_overlay.png"))) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_deploy(run: Callable[[str], dict[str, object]]) -> None:
    pytest.importorskip("onnxruntime")
    run(section("Deploy"))
    with Image.open("toy/labels.png") as labels:
        assert labels.size == (128, 128)


def test_every_command_is_run_or_marked_and_has_options_that_exist() -> None:
    """Also those that need data, weights or a GPU."""
    text = (REPO / "docs/tutorials.md").read_text(encoding="utf-8")
    found = [
        (line, needs) for language, content, needs in blocks(text) if language == "bash" for line in commands(content)
    ]
    assert sum(needs for _, needs in found) == 5
    assert len(found) == 15
    for line, _ in found:
        program, *arguments = shlex.split(line)
        for path in (each for each in arguments if each.startswith(("configs/", "examples/"))):
            assert (REPO / path).is_file(), line
        if program == "san":
            module = importlib.import_module(f"san.cli.{arguments[0]}")
            make_parser(module).parse_args(arguments[1:])
