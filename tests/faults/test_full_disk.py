"""A disk that is really full: a file system in memory of a few megabytes, where it may be mounted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from san.d2.checkpointer import damage_of, latest_checkpoint
from san.d2.run import run

MakeCfg = Callable[..., Any]


def mount(*arguments: str) -> bool:
    """Calls mount; returns whether it worked."""
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path, reference: Path) -> Iterator[Path]:
    """A folder with room for two checkpoints and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = (reference / "model_final.pth").stat().st_size * 5 // 2 + 2**18
    if not mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder)):
        pytest.skip("a file system cannot be mounted here; test_checkpoints.py injects the error instead")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_checkpoints_on_a_full_disk(make_cfg: MakeCfg, small_disk: Path, reference: Path) -> None:
    """Two fit, the others do not: training goes on, the two stay whole; with room --resume ends as if undisturbed."""
    folder = small_disk / "run"
    cfg = make_cfg(OUTPUT_DIR=str(folder), SOLVER__CHECKPOINT_PERIOD=1)
    run(cfg)
    log = (folder / "log.txt").read_text()
    failures = log.count("could not be written (No space left on device)")
    whole = sorted(folder.glob("model_*.pth"))
    assert failures == 7 - len(whole) >= 4 and "iter 6/6" in log
    assert all(damage_of(path) is None for path in whole)
    assert latest_checkpoint(folder) == whole[-1] and not list(folder.glob(".*partial*"))
    assert mount("-o", "remount,size=1g", str(small_disk))
    run(cfg, resume=True)
    ours, theirs = (torch.load(f / "model_final.pth", weights_only=True)["model"] for f in (folder, reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
