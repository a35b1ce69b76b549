"""When checkpoints are written and which are kept, with a model of numbers on whichever engine runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from san.d2.api import TrainerBase
from san.d2.checkpoints.checkpointer import SANCheckpointer
from san.d2.train.checkpoint_hooks import CheckpointHook


class Toy(TrainerBase):
    """Steps that do nothing."""

    def run_step(self) -> None:
        pass


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (None, ["model_0000002", "model_0000005", "model_0000008"]),
        (2, ["model_0000005", "model_0000008"]),
        (1, ["model_0000008"]),
    ],
)
def test_periodic_checkpoints(tmp_path: Path, keep: int | None, kept: list[str]) -> None:
    """Every third of ten iterations, the latest of them, and the final one, each with its SHA-256."""
    trainer = Toy()
    checkpointer = SANCheckpointer(nn.Linear(2, 2), str(tmp_path), trainer=trainer)
    trainer.register_hooks([CheckpointHook(checkpointer, 3, keep)])
    trainer.train(0, 10)
    names = [f"{name}.pth{ending}" for name in [*kept, "model_final"] for ending in ("", ".sha256")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", *names]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    for name, iteration in ((kept[-1], 8), ("model_final", 9)):
        content = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        assert sorted(content) == ["iteration", "model", "trainer"]
        assert content["iteration"] == iteration
        assert content["trainer"] == {"iteration": iteration}
