"""Detectron2 and the stand-in side by side: one toy run gives the same losses, metrics and checkpoints on both."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.d2.conftest import lines_writer
from tests.d2.test_standin import load_engine

pytestmark = pytest.mark.detectron2

BOTH = ("detectron2", "standin")
MAX_ITER = 9


@pytest.fixture(scope="module")
def engines() -> dict[str, Any]:
    return {name: load_engine(name) for name in BOTH}


def toy_batch(iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight samples, a pure function of the iteration."""
    generator = torch.Generator().manual_seed(iteration)
    x = torch.randn(8, 6, generator=generator)
    return x, x.sum(dim=1, keepdim=True).sin()


def toy_trainer(engine: Any, folder: Path) -> Any:
    """A small network with AdamW, a schedule and all hooks SAN uses, on one engine."""

    class Saving(engine.HookBase):  # type: ignore[misc, name-defined]
        """Writes what SAN's own hook (`san.d2.train.checkpoint_hooks`) writes, every four iterations and at the end."""

        def after_step(self) -> None:
            last = self.trainer.iter
            if (last + 1) % 4 == 0:
                self.trainer.checkpointer.save(f"model_{last:07d}", iteration=last)
            if last + 1 == self.trainer.max_iter:
                self.trainer.checkpointer.save("model_final", iteration=last)

    class Toy(engine.TrainerBase):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda i: (1 - i / MAX_ITER) ** 0.9)
            self.checkpointer = engine.DetectionCheckpointer(self.model, str(folder), trainer=self)
            writers = [lines_writer(engine, folder / "metrics.json"), engine.TensorboardXWriter(str(folder))]
            self.register_hooks(
                [
                    engine.hooks.IterationTimer(),
                    engine.hooks.LRScheduler(),
                    Saving(),
                    engine.hooks.EvalHook(3, self.evaluate),
                    engine.hooks.PeriodicWriter(writers, 2),
                ]
            )
            self.losses: dict[int, float] = {}

        def run_step(self) -> None:
            x, y = toy_batch(self.iter)
            loss = nn.functional.mse_loss(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses[self.iter] = loss.item()
            self.storage.put_scalars(loss=loss.detach())

        def evaluate(self) -> dict[str, dict[str, float]]:
            x, y = toy_batch(-1)
            with torch.no_grad():
                return {"toy": {"mse": nn.functional.mse_loss(self.model(x), y).item()}}

        def state_dict(self) -> dict[str, Any]:
            state: dict[str, Any] = super().state_dict()
            return state | {"optimizer": self.optimizer.state_dict()}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            self.optimizer.load_state_dict(state_dict["optimizer"])

    return Toy()


@pytest.fixture(scope="module")
def runs(engines, tmp_path_factory) -> dict[str, tuple[Any, Path]]:
    """The whole toy run on each engine: trainer and folder."""
    found = {}
    for name, engine in engines.items():
        folder = tmp_path_factory.mktemp(name)
        trainer = toy_trainer(engine, folder)
        trainer.train(0, MAX_ITER)
        found[name] = (trainer, folder)
    return found


def metric_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_losses_are_the_same_at_every_step(runs):
    real, own = (runs[name][0].losses for name in BOTH)
    assert len(real) == MAX_ITER
    assert real == own
    assert real[MAX_ITER - 1] != real[0]


def test_metrics_files_are_the_same_but_for_the_clock(runs):
    real, own = (metric_lines(runs[name][1]) for name in BOTH)
    assert [sorted(line) for line in real] == [sorted(line) for line in own]
    assert any("time" in line for line in own)
    for lines in (real, own):
        for line in lines:
            line.pop("time", None)
    assert real == own


def test_checkpoints_are_the_same(runs):
    folders = [runs[name][1] for name in BOTH]
    names = [sorted(path.name for path in folder.iterdir() if "tfevents" not in path.name) for folder in folders]
    assert names[0] == names[1]
    assert "model_0000003.pth" in names[0]
    for name in (name for name in names[0] if name.endswith(".pth")):
        real, own = (torch.load(folder / name, weights_only=True) for folder in folders)
        for content in (real, own):
            content["trainer"]["hooks"]["LRScheduler"].pop("lr_lambdas")
        torch.testing.assert_close(real, own, rtol=0, atol=0)
    assert len({(folder / "last_checkpoint").read_text() for folder in folders}) == 1


def test_tensorboard_files_are_the_same(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = [EventAccumulator(str(runs[name][1])).Reload() for name in BOTH]
    tags = [sorted(found.Tags()["scalars"]) for found in events]
    assert tags[0] == tags[1] == ["loss", "lr", "time", "toy/mse"]
    for tag in ("loss", "lr", "toy/mse"):
        real, own = ([(event.step, event.value) for event in found.Scalars(tag)] for found in events)
        assert real == own


@pytest.mark.parametrize(("first", "second"), [BOTH, BOTH[::-1]])
def test_either_resumes_the_other(engines, runs, tmp_path, first, second):
    """The second engine resumes the first's checkpoint of mid-run, and ends where a whole run does."""
    source = runs[first][1]
    (tmp_path / "model_0000003.pth").write_bytes((source / "model_0000003.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    trainer = toy_trainer(engines[second], tmp_path)
    nn.init.zeros_(trainer.model[0].weight)
    assert trainer.checkpointer.resume_or_load("", resume=True) == {"iteration": 3}
    assert trainer.iter == 3
    trainer.train(trainer.iter + 1, MAX_ITER)
    whole = runs[second][0]
    assert trainer.losses == {i: loss for i, loss in whole.losses.items() if i > 3}
    torch.testing.assert_close(trainer.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_defaults_are_the_same(engines):
    """Every key of the stand-in is Detectron2's, with its value and type; every key SAN reads is there."""

    def flat(node: Any, prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    real, own = (flat(engines[name].get_cfg()) for name in BOTH)
    assert own.items() <= real.items()
    assert {key: type(value) for key, value in own.items()} == {key: type(real[key]) for key in own}
    assert set(own) == set(importlib.import_module("san.d2.config.schema").KEYS) & set(real)


def test_command_lines_are_the_same(engines):
    parsers = [engines[name].default_argument_parser() for name in BOTH]
    actions = [
        [(a.dest, a.option_strings, a.default, a.type, a.nargs, type(a).__name__) for a in parser._actions]
        for parser in parsers
    ]
    assert actions[0] == actions[1]


def test_signatures_agree(engines):
    """The stand-in's parameters are also Detectron2's, with the same name and position."""
    import inspect

    for name in (
        "launch",
        "setup_logger",
        "verify_results",
        "build_model",
        "TensorboardXWriter",
        "EventStorage",
    ):
        real, own = (inspect.signature(getattr(engines[engine], name)).parameters for engine in BOTH)
        assert [*own] == [parameter for parameter in real if parameter in own], name
        left_out = {*real} - {*own}
        assert all(real[parameter].kind is inspect.Parameter.KEYWORD_ONLY for parameter in left_out), name
    for name in ("EvalHook", "IterationTimer", "LRScheduler", "PeriodicWriter"):
        real, own = ([*inspect.signature(getattr(engines[engine].hooks, name)).parameters] for engine in BOTH)
        assert real == own, name
