"""docs/extend.md as written: its parts are trained, with accumulation and on two processes, saved, reloaded, used."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from san.cli.main import main
from tests.d2.conftest import TINY
from tests.forks import TRAIN_NET, Fork, script

PAGE = Path(__file__).resolve().parents[2] / "docs/extend.md"
PARTS = "docs_extend_parts"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)


def merged(*trees: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            present = result.get(key)
            result[key] = merged(present, value) if isinstance(present, dict) else value
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shared_voc: Path) -> Path:
    """A folder with the page's module, its configuration for the tiny model, and a picture."""
    folder = tmp_path_factory.mktemp("extend")
    code = "\n".join(block for block in blocks("python"))
    (folder / f"{PARTS}.py").write_text(code)
    tree: dict[str, Any] = {}
    for key, value in TINY.items():
        node = tree
        for section in key.split(".")[:-1]:
            node = node.setdefault(section, {})
        node[key.split(".")[-1]] = value
    rules = {"SOLVER": {"PARAM_RULES": [{"MATCH": "*deep_clip.resblocks.0.*", "FROZEN": False, "LR_MULTIPLIER": 0.1}]}}
    own = {"VERSION": 2, "DATASETS": {"ROOT": str(shared_voc), "TEST": ["voc_sem_seg_val"]}}
    content = merged(tree, *map(yaml.safe_load, blocks("yaml")), rules, own)
    (folder / "my.yaml").write_text(yaml.safe_dump(content))
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / "picture.png")
    return folder


def san(folder: Path, *arguments: str) -> str:
    """The command in this process, which has imported the parts; returns its error."""
    error, before = io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(error):
            code = main(arguments)
    finally:
        os.chdir(before)
    assert code == 0 or error.getvalue()
    return error.getvalue() if code else ""


def fresh_san(folder: Path, *commands: list[str]) -> list[str]:
    """Commands in a process that has not imported the parts; returns their exit codes and errors, line by line."""
    code = f"import sys; from san.cli.main import main\nfor each in {commands}: print(main(each), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    return done.stderr.splitlines()


def train(folder: Path, name: str, *options: str) -> list[dict[str, Any]]:
    """Trains, and returns the lines of metrics.json with losses."""
    command = ["--config-file", str(folder / "my.yaml"), "--import", PARTS, *options, "OUTPUT_DIR", str(folder / name)]
    if "--num-gpus" in options:
        process = Fork(script(TRAIN_NET, command), folder / "two.txt")
        output = process.communicate()[0]
        assert process.returncode == 0, output
    else:
        assert san(folder, "train", *command) == ""
    lines = [json.loads(line) for line in (folder / name / "metrics.json").read_text().splitlines()]
    return [line for line in lines if "total_loss" in line]


def test_each_example_is_short() -> None:
    for block in blocks("python"):
        body = [line for line in block.splitlines() if line.strip() and not line.startswith(("#", "import", "from"))]
        assert len(body) <= 25


@pytest.fixture(scope="module")
def trained(folder: Path) -> list[dict[str, Any]]:
    return train(folder, "whole")


def test_a_run_has_the_parts_and_their_losses(folder: Path, trained: list[dict[str, Any]]) -> None:
    assert len(trained) == 6 and all(np.isfinite(line["total_loss"]) for line in trained)
    assert {"loss_own_structure", "loss_own_structure_0", "loss_ce", "loss_dice_0"} <= trained[0].keys()
    content = torch.load(folder / "whole/model_final.pth", weights_only=True)
    gate = content["model"]["model.side_adapter.fusions.0.gate"]
    assert not torch.equal(gate, torch.full_like(gate, 0.5)) and (gate - 0.5).abs().max() < 0.1
    assert not any(key.startswith("model.bias_head.attn_mlp") for key in content["model"])
    assert content["parts"]["fusion.name"] == {
        "name": "channel_gate", "options": {"start": 0.5}, "module": PARTS, "version": 1,
    }  # fmt: skip
    assert content["parts"]["bias_head.name"]["name"] == "masks_as_biases"
    assert (folder / "whole/inference/voc_sem_seg_val").is_dir()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("accumulated", ["SOLVER.ACCUMULATION_STEPS", "2"]),
        ("two", ["--num-gpus", "2", "SOLVER.IMS_PER_BATCH", "4", "DATASETS.TEST", "[]"]),
    ],
)
def test_neither_accumulation_nor_processes_change_the_losses(
    folder: Path, trained: list[dict[str, Any]], name: str, options: list[str]
) -> None:
    lines = train(folder, name, *options)
    for line, reference in zip(lines, trained, strict=True):
        for key in reference:
            if "loss" in key:
                assert line[key] == pytest.approx(reference[key], rel=2e-4), (line["iteration"], key)


def test_prediction_and_evaluation_take_the_parts(folder: Path, trained: list[dict[str, Any]]) -> None:
    options = ["--model", "whole", "--vocab", "cat, dog", "--out", "masks"]
    assert san(folder, "predict", "picture.png", *options, "--import", PARTS) == ""
    assert san(folder, "eval", "--config-file", "my.yaml", "--import", PARTS, "--weights", "whole") == ""


def test_files_carry_the_parts(folder: Path, trained: list[dict[str, Any]]) -> None:
    """A run and a folder for the hub are refused where the module is not imported, and the error names it."""
    options = ["--config-file", "my.yaml", "--import", PARTS, "--to", "folder", "--out", "hub"]
    assert san(folder, "convert", "whole/model_final.pth", *options) == ""
    path = folder / "hub/config.json"
    config = json.loads(path.read_text())
    assert config["model"]["fusion"] == {
        "name": "channel_gate",
        "options": {"start": 0.5},
        "module": PARTS,
        "version": 1,
    }

    def predict(out: str, *model: str) -> list[str]:
        return ["predict", "picture.png", "--vocab", "cat", "--out", out, "--model", *model]

    errors = fresh_san(folder, *(predict(model, model) for model in ("whole", "hub")))
    assert errors[1::2] == ["1", "1"] and all(f"--import {PARTS}" in error for error in errors[::2]), errors
    error = san(folder, *predict("file", "whole/model_final.pth", "--config", "tiny"))
    assert f"the fusion 'channel_gate' of the module {PARTS}" in error and f"--import {PARTS}" in error
    assert san(folder, *predict("third", "hub", "--import", PARTS)) == ""
    config["model"]["fusion"]["version"] = 2
    path.write_text(json.dumps(config))
    assert "'channel_gate' has version 1, but the file was written by version 2" in san(
        folder, *predict("fourth", "hub")
    )
