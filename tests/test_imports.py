"""The import boundary: rooms import one way, outside packages come in through one door each."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SAN = REPO / "san"

# What a room may import from san in addition to itself (docs/architecture.md).
ROOMS: dict[str, set[str]] = {
    "io": set(),
    "vocabulary": set(),
    "clip": {"vocabulary"},
    "model": {"clip", "part", "vocabulary"},
    "losses": {"part"},
    "data": {"vocabulary"},
    "shapes": {"clip", "data", "vocabulary"},
    "preparation": {"data", "vocabulary"},
    "visualize": {"data", "vocabulary"},
    "postprocess": set(),
    "panoptic_merge": {"postprocess"},
    "evaluation": {"data", "panoptic_merge", "postprocess", "visualize", "vocabulary"},
    "labelling": {"data", "evaluation", "visualize", "vocabulary"},
    "checkpoint": {"model", "clip"},
    "allocator": set(),
    "record": set(),
    "registry": {"record"},
    "part": {"registry"},
    "user_modules": set(),
    "named_clips": {"clip", "shapes"},
    "torch_defaults": set(),
    "devices": set(),
    "hub": {"model", "clip", "checkpoint", "data", "vocabulary"},
    "inference": {
        "model", "clip", "checkpoint", "data", "postprocess", "evaluation", "visualize", "vocabulary", "hub",
        "labelling", "panoptic_merge",
    },
    "video": {"model", "clip", "data", "postprocess", "inference", "vocabulary", "evaluation", "visualize"},
    "transformers": {"model", "clip", "data", "postprocess", "vocabulary", "hub"},
    "export": {"model", "clip", "data", "postprocess", "inference", "vocabulary"},
    "d2": {
        "allocator", "clip", "model", "losses", "data", "shapes", "visualize", "postprocess", "evaluation",
        "checkpoint", "inference", "vocabulary", "hub", "part", "user_modules", "panoptic_merge",
    },
    "": {"clip", "model", "checkpoint", "data", "inference", "vocabulary", "hub"},  # the public API
}  # fmt: skip
_MODELS = set(ROOMS) - {"d2", ""}
ROOMS["web"] = {"vocabulary", "clip", "inference"}
ROOMS["demo"] = _MODELS | {"web"}
ROOMS["serve"] = _MODELS | {"web"}
ROOMS["benchmark"] = set(ROOMS) - {"demo", "serve", "web", ""}
ROOMS["cli"] = set(ROOMS) - {""}
ROOMS["__main__"] = {"cli"}
_EVERYWHERE = {"io", "torch_defaults", "devices", "record", "registry"}
for _room in set(ROOMS) - {"io", *_EVERYWHERE}:
    ROOMS[_room] |= _EVERYWHERE
for _room in ("torch_defaults", "devices", "record", "registry"):
    ROOMS[_room] |= {"io"}

# Packages that only one file may import.
DOORS = {
    "detectron2": "san/d2/api.py",
    "open_clip": "san/clip/open_clip_adapter.py",
    "timm": "san/clip/timm_tower.py",
    "ftfy": "san/vocabulary/classes.py",
    "regex": "san/vocabulary/classes.py",
    "av": "san/video/files.py",
}
# Packages that only one room may import, and then in few files.
GUESTS = {
    "wandb": "san/d2/",
    "gradio": "san/demo/",
    "fastapi": ("san/demo/", "san/serve/"),
    "uvicorn": ("san/demo/", "san/serve/"),
    "prometheus_client": "san/serve/",
    "selenium": "tests/",
    "matplotlib": "san/visualize/",
    "transformers": ("san/transformers/", "san/clip/"),
    "fvcore": "san/d2/",
    "iopath": "san/d2/",
    "yacs": "san/d2/",
    "scipy": "san/",
    "submitit": "san/cli/",
    "onnx": "san/export/",
    "onnxscript": "san/export/",
    "onnxruntime": "san/export/",
    "pycocotools": ("san/preparation/", "san/evaluation/", "tools/maintainers/"),
}
# Packages of several files, named.
SHARED = {"huggingface_hub": {"san/clip/open_clip_adapter.py", "san/hub/remote.py"}}


def python_files(*folders: str) -> list[Path]:
    """All Python files below folders of the repository."""
    return [path for folder in folders for path in sorted((REPO / folder).rglob("*.py"))]


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Full names of the modules that a file imports anywhere, also inside functions; relative ones resolved."""
    package = path.relative_to(REPO).parent.parts
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return tuple(names)


def room_of(module: str) -> str | None:
    """The room of a module of san ("" for san itself), None for other packages."""
    parts = module.split(".")
    if parts[0] != "san":
        return None
    return parts[1] if len(parts) > 1 and is_room(parts[1]) else ""


def is_room(name: str) -> bool:
    return (SAN / name).is_dir() or (SAN / f"{name}.py").is_file()


def module_of(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def test_the_walk_sees_imports(tmp_path):
    """Guards the guard: every way of importing is seen."""
    folder = SAN / "losses"
    assert "san.losses.config" in imports(folder / "criterion.py")
    assert "scipy.optimize" in imports(folder / "matcher.py")
    assert room_of("san.losses.config") == "losses"
    assert room_of("san") == ""
    assert room_of("sanity") is None


@pytest.mark.parametrize("path", python_files("san"), ids=relative)
def test_rooms_import_one_way(path):
    room = room_of(module_of(path))
    assert room in ROOMS, f"{relative(path)}: a new room; say in ROOMS what it may import"
    for name in imports(path):
        target = room_of(name)
        if target in (None, room, ""):  # "" is `san` itself, whose own imports are checked with its room
            continue
        assert target in ROOMS[room], f"{relative(path)} imports {name}: {room or 'san'} may not import {target}"


def test_rooms_have_no_cycle():
    order: list[str] = []
    rooms = {room: set(targets) for room, targets in ROOMS.items()}
    while rooms:
        free = [room for room, targets in rooms.items() if targets <= set(order)]
        assert free, f"a cycle among {sorted(rooms)}"
        order += free
        for room in free:
            del rooms[room]


# Folders of san/d2, and those whose modules each may import; files next to them are free, but without circles.
FOLDERS = {
    "standin": set(),
    "config": set(),
    "processes": set(),
    "data": {"config", "processes"},
    "checkpoints": {"config", "processes"},
    "evaluate": {"config", "processes", "data", "checkpoints"},
    "train": {"config", "processes", "data", "checkpoints", "evaluate"},
}


@pytest.mark.parametrize("path", [path for path in python_files("san/d2") if path.parent != SAN / "d2"], ids=relative)
def test_folders_of_the_framework_side_import_one_way(path):
    folder = path.relative_to(SAN / "d2").parts[0]
    for name in imports(path):
        target = name.split(".")[2:3]
        if name.startswith("san.d2.") and target[0] in FOLDERS:
            assert target[0] in FOLDERS[folder] | {folder}, f"{relative(path)} imports {name}"


def test_every_folder_and_file_of_the_framework_side_has_its_job():
    text = (SAN / "d2/README.md").read_text(encoding="utf-8")
    files = {path.name for path in python_files("san/d2") if path.parent.name != "standin"} - {"__init__.py"}
    assert {path.name for path in (SAN / "d2").iterdir() if path.is_dir()} - {"__pycache__"} == set(FOLDERS)
    assert sorted(re.findall(r"^\| `(\w+\.py)`", text, re.M)) == sorted(files)


def when_imported(path: Path) -> set[str]:
    """The modules that a file imports when it is imported itself: not inside functions or for type checkers."""
    found: set[str] = set()

    def look(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.update(known(f"{node.module}.{alias.name}", node.module) for alias in node.names)
            elif (
                isinstance(node, ast.If | ast.Try | ast.With)
                and "TYPE_CHECKING" not in ast.unparse(node).split("\n")[0]
            ):
                look(node.body)
                look(getattr(node, "orelse", []))

    look(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def known(name: str, package: str) -> str:
    """The name if it is a module, else the package it is taken from."""
    place = REPO / name.replace(".", "/")
    return name if place.with_suffix(".py").is_file() or place.is_dir() else package


def test_no_module_imports_itself_by_way_of_others():
    waiting = {module_of(path): when_imported(path) for path in python_files("san")}
    done: set[str] = set()
    while waiting:
        free = {name for name, targets in waiting.items() if not (targets & waiting.keys()) - {name}}
        assert free, f"a circle among {sorted(waiting)}"
        for name in free:
            del waiting[name]
        done |= free
    assert len(done) > 200


@pytest.mark.parametrize("path", python_files("san/d2/standin"), ids=relative)
def test_the_stand_in_stands_alone(path):
    """Except for the reader of checkpoints."""
    for name in imports(path):
        own = name.startswith(("san.d2.standin", "san.checkpoint"))
        assert not name.startswith("san") or own, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("package", DOORS)
def test_one_door(package):
    users = [relative(path) for path in python_files("san", "tools", "datasets") if package in roots(path)]
    assert set(users) <= {DOORS[package]}


@pytest.mark.parametrize("package", GUESTS)
def test_guests_stay_in_their_room(package):
    users = [relative(path) for path in python_files("san", "tools", "datasets") if package in roots(path)]
    assert all(user.startswith(GUESTS[package]) for user in users), f"{package} is imported in {users}"
    if package in ("wandb", "gradio"):
        assert len(users) <= 1, f"{package} is imported in {users}; one file is enough"


@pytest.mark.parametrize("package", SHARED)
def test_shared_packages_stay_in_their_files(package):
    users = {relative(path) for path in python_files("san", "tools", "datasets") if package in roots(path)}
    assert users <= SHARED[package], f"{package} is imported in {users}"


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


# redaction looks for secrets in it
BELOW = [path for path in python_files("san") if not {"d2", "cli", "redaction.py"} & set(path.parts)]


@pytest.mark.parametrize("path", BELOW, ids=relative)
def test_no_environment_below_the_framework(path):
    """Below san/d2 code sees arguments, never the environment, and does not read the clock's or the shell's mind."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        assert text not in {"os.environ", "os.getenv", "environ", "getenv"}, f"{relative(path)}:{node.lineno}"


PROBE = """
import importlib, logging, os, pathlib, pkgutil, sys
HIDDEN = {hidden!r}

sys.modules.update(dict.fromkeys(HIDDEN))  # importing them raises; importlib.util.find_spec finds nothing
import torch
before = (torch.get_num_threads(), dict(os.environ), len(logging.root.handlers), torch.random.initial_seed())
import san
assert before == (torch.get_num_threads(), dict(os.environ), len(logging.root.handlers), torch.random.initial_seed())
assert not {{"detectron2", "wandb", "gradio", "matplotlib", "san.d2"}} & {{
    name for name, module in sys.modules.items() if module is not None
}}, "import san pulls them in"
assert not list(pathlib.Path().iterdir()), "import san leaves files behind"
if {everything}:
    for module in pkgutil.walk_packages(san.__path__, "san."):
        importlib.import_module(module.name)
    assert not list(pathlib.Path().iterdir()), "importing leaves files behind"
print(san.__version__)
"""


@pytest.mark.parametrize("everything", [False, True], ids=["san", "every module"])
def test_imports_without_detectron2_wandb_and_gradio(tmp_path, everything):
    code = PROBE.format(hidden={"detectron2", "wandb", "gradio"}, everything=everything)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPO)!r})\n{code}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()[0].isdigit()


@pytest.mark.parametrize("room", ["clip", "model", "losses", "vocabulary", "checkpoint"])
def test_plain_rooms_name_no_configuration_key(room: str) -> None:
    """They speak of their own fields; `san.d2` puts the keys in."""
    paths = sorted((SAN / room).rglob("*.py")) or [SAN / f"{room}.py"]
    named = [
        (relative(path), found)
        for path in paths
        for found in re.findall(
            r"\b(?:MODEL|SOLVER|INPUT|DATASETS|DATALOADER)\.[A-Z_.]+", path.read_text(encoding="utf-8")
        )
    ]
    assert not named
