"""`san convert --to folder`: from a training run to what the hub takes."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch

from san.cli.main import main
from san.hub import SHAPES_CHECKPOINT, load_pretrained
from san.model.parts import describe_parts
from tests.faults.test_full_disk import mount


def test_a_checkpoint_becomes_a_folder(repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(repo / "configs" / "shapes" / "san_shapes.yaml")
    command = [str(SHAPES_CHECKPOINT), "--config-file", config, "--to", "folder", "--out", str(tmp_path / "model")]
    assert main(["convert", *command, "--half"]) == 0
    assert "4.9 MB" in capsys.readouterr().out
    ours, theirs = load_pretrained(tmp_path / "model"), load_pretrained("shapes")
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), atol=1e-3, rtol=1e-3)
    assert ours.config == describe_parts(theirs.config)
    assert main(["convert", *command]) == 1
    assert "exists; remove it" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["folder", "transformers"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "transformers" and importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    (disk := tmp_path / "disk").mkdir()
    if not mount("-t", "tmpfs", "-o", "size=3m", "none", str(disk)):
        pytest.skip("a file system cannot be mounted here")
    try:
        assert main(["convert", str(SHAPES_CHECKPOINT), "--to", form, "--out", str(disk / "model")]) == 1
        error = capsys.readouterr().err.strip()
        assert error.splitlines()[-1].startswith("error: the weights cannot be written")
        assert "No space left" in error and "Traceback" not in error
        assert not [each for each in disk.rglob("*") if each.is_file()]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
