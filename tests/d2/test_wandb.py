"""Weights & Biases, by a module in its place: one run however often it is resumed, and no question at the terminal."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from san.d2.api import EventStorage
from san.d2.checkpoints.run_folder import recorded_run
from san.d2.config.keys import load_config
from san.d2.run import run
from san.d2.train.writers import WandbWriter


class Server:
    """What is there of a run: its steps, in the order in which they came."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []

    def init(self, **options: Any) -> Any:
        if options["mode"] == "online" and sys.stdin.isatty():
            raise AssertionError("somebody would be asked for a key")
        self.starts.append(options)
        step = self.rows[-1][0] + 1 if self.rows else 0
        return types.SimpleNamespace(
            step=step, log=lambda row, step: self.rows.append((step, row)), finish=lambda: None
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    settings = type("Settings", (), {"model_fields": {}})
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=found.init, Settings=settings))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_resumed_run_goes_on_as_the_same_run(make_cfg: Any, server: Server, mode: str) -> None:
    """Though it was killed two iterations after its checkpoint; those are done again and logged once."""
    changes = {"WANDB__ENABLED": True, "WANDB__MODE": mode, "SOLVER__CHECKPOINT_PERIOD": 3}
    cfg = make_cfg(**changes)
    folder = Path(cfg.OUTPUT_DIR)
    run(make_cfg(**changes, SOLVER__MAX_ITER=5))
    (folder / "model_final.pth").unlink()
    run(cfg, resume=True)
    first, second = server.starts
    assert first["id"] == second["id"] == recorded_run(folder)
    assert first["resume"] == second["resume"] == "allow"
    steps = [step for step, row in server.rows if "total_loss" in row]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in server.rows] == sorted(step for step, _ in server.rows)


def test_an_evaluation_that_is_made_after_resuming_is_logged(server: Server, tmp_path: Path) -> None:
    """It bears the number of an iteration that is there already."""
    cfg = load_config("", ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)])
    writer = WandbWriter(cfg, "a", 7)
    with EventStorage(7) as storage:
        storage.put_scalars(lr=0.1, **{"voc/mIoU": 3.0}, smoothing_hint=False)
        writer.write()
        storage.iter = 8
        storage.put_scalar("lr", 0.2, smoothing_hint=False)
        writer.write()
    assert server.rows == [(8, {"voc/mIoU": 3.0}), (8, {"lr": 0.2})]


def test_a_missing_key_is_an_error_before_training(
    make_cfg: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("No API key configured.")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    cfg = make_cfg(WANDB__ENABLED=True, WANDB__MODE="online")
    with pytest.raises(ValueError, match=r"cannot start with WANDB.MODE online \(No API key configured.\); .*API_KEY"):
        run(cfg)
    assert not (Path(cfg.OUTPUT_DIR) / "config.yaml").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are Unix's")
def test_wandb_itself_asks_nobody(make_cfg: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real one, with a terminal before it and without a key."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(ValueError, match=r"cannot start with WANDB.MODE online .*WANDB.MODE offline"):
        WandbWriter(make_cfg(WANDB__ENABLED=True, WANDB__MODE="online"), "a", -1)
