"""`san convert --to folder`: from a training run to what the hub takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from san.cli.main import main
from san.hub import SHAPES_CHECKPOINT, load_pretrained


def test_a_checkpoint_becomes_a_folder(repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(repo / "configs" / "shapes" / "san_shapes.yaml")
    command = [str(SHAPES_CHECKPOINT), "--config-file", config, "--to", "folder", "--out", str(tmp_path / "model")]
    assert main(["convert", *command, "--half"]) == 0
    assert "4.8 MB" in capsys.readouterr().out
    ours, theirs = load_pretrained(tmp_path / "model"), load_pretrained("shapes")
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), atol=1e-3, rtol=1e-3)
    assert ours.config == theirs.config
    assert main(["convert", *command]) == 1
    assert "exists; remove it" in capsys.readouterr().err
