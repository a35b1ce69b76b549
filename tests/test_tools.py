"""The scripts of tools/, and `san convert`, as their users run them; train_net.py has tests of its own in tests/d2."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from san.checkpoint import load_checkpoint_file, trained_names
from san.cli.main import main
from san.model.build import build_san
from san.model.config import variant
from san.model.names import NAMINGS, naming_of

TOOLS = sorted((Path(__file__).resolve().parent.parent / "tools").rglob("*.py"))

TINY = """
MODEL:
  CLIP: {NAME: tiny, PRETRAINED: "", SHALLOW_DEPTH: 3}
  SIDE_ADAPTER:
    {EMBED_DIM: 144, IMAGE_SIZE: 96, NUM_QUERIES: 10, FUSION: ["0->0", "1->1", "2->2", "3->3"]}
  HEAD: {EMBED_CHANNELS: 32, MLP_CHANNELS: 32}
  ATTN_BIAS: {NUM_HEADS: 3}
"""


def load_tool(name: str) -> ModuleType:
    (path,) = (tool for tool in TOOLS if tool.stem == name)
    spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_help_explains_every_option(
    tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(tool), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name="__main__")
    shown = capsys.readouterr()
    assert not ended.value.code, shown.err
    assert "usage:" in shown.out
    assert len(shown.out.splitlines()) > 6


@pytest.fixture
def tiny_run(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of the tiny model as training writes it, and its configuration."""
    torch.manual_seed(0)
    checkpoint, config = tmp_path / "model_final.pth", tmp_path / "tiny.yaml"
    torch.save({"model": build_san(variant("tiny")).state_dict(), "iteration": 9}, checkpoint)
    config.write_text(TINY)
    return checkpoint, config


@pytest.mark.parametrize("form", ["published", "mmsegmentation", "own"])
def test_convert_to_a_whole_checkpoint_and_back(tiny_run: tuple[Path, Path], tmp_path: Path, form: str) -> None:
    checkpoint, config = tiny_run
    assert (
        main(["convert", str(checkpoint), "--config-file", str(config), "--to", form, "--out", str(tmp_path / "a.pth")])
        == 0
    )
    assert naming_of(load_checkpoint_file(tmp_path / "a.pth")["model"]) is NAMINGS.get(form)
    again = [str(tmp_path / "a.pth"), "--to", "own", "--out", str(tmp_path / "b.pth")]  # recognised
    assert main(["convert", *again]) == 0
    back, before = load_checkpoint_file(tmp_path / "b.pth")["model"], load_checkpoint_file(checkpoint)["model"]
    torch.testing.assert_close(dict(back), dict(before), atol=0, rtol=0)


def test_convert_to_slim_halves_and_refuses_to_overwrite(
    tiny_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, config = tiny_run
    arguments = [
        str(checkpoint),
        "--config-file",
        str(config),
        "--to",
        "slim",
        "--half",
        "--out",
        str(tmp_path / "s.pth"),
    ]
    assert main(["convert", *arguments]) == 0
    tensors = load_checkpoint_file(tmp_path / "s.pth")["model"]
    assert set(tensors) == trained_names(build_san(variant("tiny")))
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert main(["convert", *arguments]) == 1
    assert "exists; remove it" in capsys.readouterr().err


def test_convert_to_slim_keeps_what_the_rules_tune(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, config = tiny_run
    rules = 'SOLVER: {PARAM_RULES: [{MATCH: "model.deep_clip.resblocks.0.*", FROZEN: false}]}\n'
    config.write_text(TINY + rules)
    arguments = [str(checkpoint), "--config-file", str(config), "--to", "slim", "--out", str(tmp_path / "s.pth")]
    assert main(["convert", *arguments]) == 0
    deep = {name for name in load_checkpoint_file(tmp_path / "s.pth")["model"] if name.startswith("deep_clip.")}
    assert deep and all(name.startswith("deep_clip.resblocks.0.") for name in deep)


def test_convert_refuses_what_does_not_fit(
    tiny_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, config = tiny_run
    config.write_text(TINY.replace("NUM_QUERIES: 10", "NUM_QUERIES: 12"))
    out = tmp_path / "a.pth"
    assert main(["convert", str(checkpoint), "--config-file", str(config), "--to", "own", "--out", str(out)]) == 1
    assert "(10, 144) instead of (12, 144)" in capsys.readouterr().err
    assert not out.exists()


def test_the_version_matrix_installs_each_row_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fakes of uv and pytest that print their arguments; a row that cannot be installed is reported."""
    check = load_tool("check_versions")
    commands: list[list[str]] = []

    def run(environment: Any, command: list[str], **variables: str) -> None:
        commands.append(command[3:])  # after python -m uv
        if "torch==2.14.1" in command:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(check.Environment, "_run", run)
    monkeypatch.setattr(check.Environment, "versions", lambda self: ("1.0",) * len(check.SHOWN))
    monkeypatch.setattr(check.Environment, "test", lambda self, arguments: (f"2 passed {arguments}", 0))
    rows = ["--rows", "oldest", "newest", "torch-2.14", "--folder", str(tmp_path)]
    assert check.main([*rows, "--detectron2", "clone", "--", "tests/d2"]) == 1
    assert {tuple(command[:3]) for command in commands if command[0] == "pip"} == {("pip", "install", "--python")}
    assert {Path(command[3]).parent for command in commands if command[0] == "pip"} == {tmp_path}
    installs = [command[4:] for command in commands if command[0] == "pip"]
    assert installs[0] == ["--resolution", "lowest-direct", "--editable", ".[test]"]
    assert installs[2] == ["--no-build-isolation", "clone"]
    assert installs[3] == ["--upgrade", "--editable", ".[test]"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[-5:]] == ["no", "yes", "no", "yes", "no"]
    assert "2 passed ['tests/d2']" in lines[-5]
    assert "not installed" in lines[-1]
    assert check.main([*rows[:3], "--folder", str(tmp_path)]) == 0
