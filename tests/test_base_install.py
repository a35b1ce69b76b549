"""The wheel and its base installation: it predicts, and says what to install for everything else.

The default test makes an environment of links to just those installed packages that the wheel's metadata asks for; the
slow one installs the wheel from the package index.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parent.parent
PROBE = REPO / "tests/base_probe.py"
DISTRIBUTIONS = {
    "PIL": "Pillow", "yaml": "PyYAML", "open_clip": "open_clip_torch", "fastapi": "gradio", "uvicorn": "gradio",
}  # fmt: skip
CHECKED_ROOMS = {"d2": "train", "visualize": "train", "demo": "demo", "export": "export"}
"""By api.py, new_figure, build_app and export_model."""
EXTRA_OF = {"demo": "demo", "export": "export", "label": "label", "video": "video"}  # all other commands need "train"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's wheel and source distribution, built from a copy without the package index."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    for name in ("san", "tests"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    build = f"import setuptools.build_meta as b\nb.build_wheel({str(out)!r})\nb.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The project's wheel."""
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def requires(wheel: Path) -> list[str]:
    """The requirements of the wheel, with the conditions of its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        found = message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    assert found
    return found


def needed(requirements: Iterable[str], extras: Iterable[str] = ()) -> set[str]:
    """Names of the installed packages that requirements ask for, with all that these ask for."""
    found: set[str] = set()
    waiting = [(requirement, frozenset(extras)) for requirement in requirements]
    seen = set(waiting)
    while waiting:
        text, chosen = waiting.pop()
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in chosen or {""}):
            continue
        try:
            requires = metadata.requires(requirement.name)
        except metadata.PackageNotFoundError:  # such as CUDA's, with a torch for the CPU
            continue
        found.add(canonicalize_name(requirement.name))
        more = {(each, frozenset({"", *requirement.extras})) for each in requires or ()} - seen
        seen |= more
        waiting += more
    return found


@pytest.fixture(scope="module")
def base_environment(wheel: Path, requires: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and links to the packages of its base installation."""
    folder = tmp_path_factory.mktemp("base")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in needed(requires):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return folder


@pytest.fixture(scope="module")
def answers(base_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The probe's output in the base environment; without "site", Python finds no other package."""
    return probe([sys.executable, "-S"], tmp_path_factory.mktemp("work"), PYTHONPATH=str(base_environment))


def probe(python: list[str], folder: Path, **variables: str) -> dict[str, Any]:
    hidden = ("PYTHONPATH", "SAN_BACKEND", "DETECTRON2_DATASETS")
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    result = subprocess.run(
        [*python, PROBE, REPO],
        cwd=folder,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_the_distributions_hold_the_package_and_nothing_else(built, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path.relative_to(REPO) for path in (REPO / "san").rglob("*") if path.is_file()}
    expected = {path.as_posix() for path in files if "__pycache__" not in path.parts and path.suffix != ".md"}
    assert names == expected
    assert {"san/shapes/assets/san.pth", "san/vocabulary/labels/coco_stuff_171.json"} <= names
    assert wheel.stat().st_size < 6e6
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        paths = {"/".join(member.name.split("/")[1:]) for member in archive if member.isfile()}
    assert {path for path in paths if path.startswith("san/")} == expected
    assert not {path for path in paths if path.startswith("tests")}


def test_a_base_installation_has_no_package_of_an_extra(base_environment):
    packages = {path.name for path in base_environment.iterdir()}
    assert {"san", "torch", "open_clip", "PIL"} <= packages
    assert not packages & {
        "fvcore",
        "iopath",
        "matplotlib",
        "pycocotools",
        "scipy",
        "tensorboard",
        "wandb",
        "gradio",
        "av",
        "shapely",
    }


def test_a_base_installation_predicts_and_helps(answers):
    assert len(answers["help"]) > 20
    assert {name: answer for name, answer in answers["help"].items() if answer != [0, ""]} == {}


def test_what_needs_an_extra_names_it_in_one_line(answers):
    for name, (code, error) in answers["beyond"].items():
        assert code == 1, (name, error)
        assert error.count("\n") == 1, (name, error)
        assert error.startswith("error: "), (name, error)
        extra = EXTRA_OF.get(name, "train")
        assert error.endswith(f'install it: pip install "san-segmentation[{extra}]"\n'), (name, error)


def test_every_imported_package_is_declared_where_it_is_needed(requires):
    """Also those that another package requires; what `require_extra` checks is in the extra that it names."""
    extras = ("", "train", "demo", "slurm", "video", "export", "label", "multilingual", "supervision", "fiftyone")
    declared: dict[str, set[str]] = {extra: set() for extra in extras}
    for requirement in map(Requirement, requires):
        for extra, names in declared.items():
            if requirement.marker is None or (extra and requirement.marker.evaluate({"extra": extra})):
                names.add(canonicalize_name(requirement.name))
    for path in (REPO / "san").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body = []
        checked = {extra for room, extra in CHECKED_ROOMS.items() if room in path.parts}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require_extra":
                extra, _, *modules = (ast.literal_eval(each) for each in node.args)
                assert {*modules} <= declared[extra], f"{path}: {modules} are not in the extra {extra}"
                checked.add(extra)
        own = names_imported(tree) - {*sys.stdlib_module_names, "san", "detectron2"}
        allowed = declared[""].union(*(declared[extra] for extra in checked))
        assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in own} <= allowed, path


def names_imported(tree: ast.Module) -> set[str]:
    found = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    found += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in found}


@pytest.mark.slow
def test_the_wheel_installed_from_the_package_index_predicts(wheel, tmp_path, request):
    environment = tmp_path / "environment"
    request.addfinalizer(lambda: shutil.rmtree(environment, ignore_errors=True))  # some gigabytes
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    python = str(environment / "bin/python")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    trial = [*pip, "download", "--quiet", "--no-deps", "--dest", tmp_path / "trial", "tqdm"]
    if subprocess.run(trial, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("the package index cannot be reached")
    subprocess.run([*pip, "install", "--quiet", wheel], check=True, timeout=1800)
    (tmp_path / "work").mkdir()
    found = probe([python], tmp_path / "work")
    test_a_base_installation_predicts_and_helps(found)
    test_what_needs_an_extra_names_it_in_one_line(found)
