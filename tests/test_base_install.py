"""The distributions and their base installation: it predicts, is typed, and says what to install for everything else.

The default tests make an environment of links to just those installed packages that the wheel's metadata asks for; the
slow ones install the distributions from the package index, on the oldest and newest supported Python that is here.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import san

REPO = Path(__file__).resolve().parent.parent
PROBE = REPO / "tests/base_probe.py"
DISTRIBUTIONS = {
    "PIL": "Pillow", "yaml": "PyYAML", "open_clip": "open_clip_torch", "pydantic": "fastapi", "starlette": "fastapi",
}  # fmt: skip
CHECKED_ROOMS = {"d2": "train", "visualize": "train"} | {
    room: room for room in ("demo", "serve", "export", "transformers")
}
"""By api.py, new_figure, build_app, `san serve`, export_model and `san convert`."""
EXTRA_OF = {name: name for name in ("demo", "serve", "export", "label", "video")}  # all other commands need "train"


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
def described(wheel: Path) -> Message:
    """The metadata of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def requires(described: Message) -> list[str]:
    """The requirements of the wheel, with the conditions of its extras."""
    found = described.get_all("Requires-Dist")
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


def test_both_distributions_have_the_version_of_the_package(built, described):
    assert described["Version"] == san.__version__
    assert {path.name for path in built.iterdir()} == {
        f"san_segmentation-{san.__version__}{ending}" for ending in ("-py3-none-any.whl", ".tar.gz")
    }


def test_the_description_leads_to_files_of_the_repository_from_any_page(described):
    """A package page has neither the README's neighbours nor its headings as anchors."""
    text = described.get_payload(decode=True).decode()
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text)
    source = dict(line.split(", ", 1) for line in described.get_all("Project-URL", []))["Source"]
    own = []
    for mark, target in targets:
        assert target.startswith("https://"), target
        if target.startswith(f"{source}/{'raw' if mark else 'blob'}/v{san.__version__}/"):
            own.append(target.removeprefix(source).split("/", 3)[3].split("#")[0])
    assert len(own) > 20
    assert "docs/images/shapes_panel.png" in own
    assert not [path for path in own if not (REPO / path).exists()]
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert len(targets) == len(re.findall(r"\]\([^)\s]+\)", readme))
    assert re.findall(r"^#.*", text, re.M) == re.findall(r"^#.*", readme, re.M)


def test_the_package_index_accepts_the_distributions(built):
    pytest.importorskip("twine", reason="twine is not installed (the extra release)")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


TYPED = """
from pathlib import Path

from san import Predictor, Segmentation, Vocabulary

predictor: Predictor = Predictor.from_pretrained("shapes", device="cpu")
predictor.set_image("scene.png")
result: Segmentation = predictor.segment(Vocabulary.parse("red star, blue ring"))
areas: dict[str, float] = result.areas()
files: dict[str, Path] = result.save("out/scene", ["labels"])
Vocabulary.parse(3.5)  # wrong
result.area()  # wrong
areas = result.names  # wrong
"""


def test_a_typed_script_is_checked_against_the_installed_wheel(base_environment, tmp_path):
    """mypy finds what is wrong, and nothing else; the types of other packages would take it half a minute."""
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(TYPED, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\nfollow_imports = skip\n[mypy-san.*]\nfollow_imports = normal\n", encoding="utf-8"
    )
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "base.pth").write_text(f"{base_environment}\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--python-executable", environment / "bin/python", "script.py"]
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")}
    checked = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=300, check=False)
    found = [int(number) for number in re.findall(r"^script\.py:(\d+): error", checked.stdout, re.M)]
    wrong = [number for number, line in enumerate(TYPED.splitlines(), 1) if line.endswith("# wrong")]
    assert found == wrong, checked.stdout + checked.stderr


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
        "fastapi",
        "prometheus_client",
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
    extras = {"", *re.findall(r"extra == ['\"]([\w-]+)", " ".join(requires))}
    declared: dict[str, set[str]] = {extra: set() for extra in extras}
    for requirement in map(Requirement, requires):
        for extra, names in declared.items():
            if requirement.marker is None or (extra and requirement.marker.evaluate({"extra": extra})):
                names.add(canonicalize_name(requirement.name))
                names.update(f"[{own}]" for own in requirement.extras if requirement.name == "san-segmentation")
    for names in declared.values():
        for own in {name[1:-1] for name in names if name.startswith("[")}:
            names.update(declared[own])
    for path in (REPO / "san").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                node.body = []
        checked = {extra for room, extra in CHECKED_ROOMS.items() if room in path.parts}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require_extra":
                extra, _, *modules = (ast.literal_eval(each) for each in node.args)
                needed = {canonicalize_name(DISTRIBUTIONS.get(each, each)) for each in modules}
                assert needed <= declared[extra], f"{path}: {needed} are not in the extra {extra}"
                checked.add(extra)
        own = names_imported(tree) - {*sys.stdlib_module_names, "san", "detectron2"}
        allowed = declared[""].union(*(declared[extra] for extra in checked))
        assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in own} <= allowed, path


def names_imported(tree: ast.Module) -> set[str]:
    found = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    found += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in found}


def supported() -> list[str]:
    """The supported versions of Python, oldest first."""
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r"Python :: (3\.\d+)", text)


def interpreter(version: str) -> str | None:
    """A Python of a version that runs; shims of version managers may not."""
    if version == "{}.{}".format(*sys.version_info):
        return sys.executable
    found = shutil.which(f"python{version}")
    works = found and subprocess.run([found, "-c", ""], capture_output=True, timeout=60, check=False).returncode == 0
    return found if works else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "distribution"),
    [(supported()[0], "*.whl"), (supported()[-1], "*.tar.gz"), ("{}.{}".format(*sys.version_info), "*.whl")],
)
def test_a_distribution_installed_from_the_package_index_predicts(version, distribution, built, tmp_path, request):
    """Alone in an empty environment."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    environment = tmp_path / "environment"
    request.addfinalizer(lambda: shutil.rmtree(environment, ignore_errors=True))  # some gigabytes
    subprocess.run([python, "-m", "venv", environment], check=True, timeout=120)
    own = str(environment / "bin/python")
    pip = [own, "-m", "pip", "--disable-pip-version-check"]
    trial = [*pip, "download", "--quiet", "--no-deps", "--dest", tmp_path / "trial", "tqdm"]
    if subprocess.run(trial, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("the package index cannot be reached")
    subprocess.run([*pip, "install", "--quiet", next(built.glob(distribution))], check=True, timeout=1800)
    (tmp_path / "work").mkdir()
    found = probe([own], tmp_path / "work")
    test_a_base_installation_predicts_and_helps(found)
    test_what_needs_an_extra_names_it_in_one_line(found)
