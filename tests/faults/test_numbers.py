"""Losses and gradients that are not finite: left out, counted, and a row of them stops training with a dump."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from san.cli import replay
from san.cli.main import run_tool
from san.cli.replay import read_dump
from san.d2.processes.stopping import StopRequested
from san.d2.run import run
from san.d2.train import trainer
from san.d2.train.iteration import NonFiniteError, Stepper

MakeCfg = Callable[..., Any]


def spoil(monkeypatch: pytest.MonkeyPatch, iterations: set[int], what: str = "loss") -> None:
    """Makes the losses, or gradients, of some iterations NaN; a resumed run counts on from where it starts."""
    real = Stepper._forward

    def forward(self: Stepper, batch: Any, norm: Any, iteration: int) -> Any:
        losses = real(self, batch, norm, iteration)
        if iteration in iterations and what == "gradient":
            losses["loss_ce"].register_hook(lambda gradient: gradient * float("nan"))
        return losses

    def computed(self: Stepper, batch: Any, norm: Any = None) -> Any:
        losses = given(self, batch, norm)
        number = batch[0]["position"] // 4
        return losses | {"loss_ce": losses["loss_ce"] * float("nan")} if number in iterations else losses

    given = Stepper.losses
    if what == "gradient":
        monkeypatch.setattr(Stepper, "_forward", forward)
    else:
        monkeypatch.setattr(Stepper, "losses", computed)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_bad_iteration_is_left_out(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch, what: str, accumulation: int
) -> None:
    spoil(monkeypatch, {2, 3}, what)
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=1, SOLVER__CHECKPOINT_KEEP=1, SOLVER__ACCUMULATION_STEPS=accumulation)
    run(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1, 4, 5]
    assert [row["skipped_updates"] for row in rows if "skipped_updates" in row] == [1, 2]
    log = (folder / "log.txt").read_text()
    assert "The update is left out (1 in a row, 1 in all)" in log and "(2 in a row, 2 in all)" in log
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert not (folder / "model_0000003.pth").exists() and not list(folder.glob("nonfinite*"))


def test_a_dump_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as sparse:
        sparse.truncate(30 << 30)
    with pytest.raises(ValueError, match="32,212,254,720 bytes, but at most 64,000,000 are read"):
        read_dump(tmp_path / "a.json")


def test_a_row_of_them_stops_with_a_dump_that_replays(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last good checkpoint stays, though only one is kept; the replay gives the run's own losses."""
    cfg = make_cfg(SOLVER__CHECKPOINT_PERIOD=1, SOLVER__CHECKPOINT_KEEP=1)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {2, 3, 4})
        with pytest.raises(
            FloatingPointError, match=r"iteration 4, images .*train_.*3 updates in a row .*; san replay "
        ):
            run(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    assert [path.name for path in folder.glob("model_*.pth")] == ["model_0000001.pth"]
    dump = json.loads((folder / "nonfinite_0000004.json").read_text())
    assert [each["iteration"] for each in dump["iterations"]] == [2, 3, 4]
    (process,) = dump["iterations"][0]["processes"]
    assert process["steps"][0]["positions"] == [8, 9, 10, 11] and process["losses"]["loss_ce"] == "nan"
    path = str(folder / "nonfinite_0000004.json")
    assert run_tool(replay, [path]) == 0
    shown = capsys.readouterr().out
    assert "all numbers are finite here" in shown
    run(make_cfg(), resume=True)
    row = [r for r in map(json.loads, (folder / "metrics.json").read_text().splitlines()) if r["iteration"] == 2][-1]
    assert f"loss_ce {row['loss_ce']:.6g}," in next(line for line in shown.splitlines() if "step 0" in line)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {3})
        assert run_tool(replay, ["--iteration", "3", path]) == replay.NOT_FINITE
    assert "position 12 " in capsys.readouterr().out
    assert run_tool(replay, ["--iteration", "9", path]) == 1


def dump_of(make_cfg: MakeCfg, folder: Path, log_period: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dump of a run that stops, and its weights."""
    cfg = make_cfg(OUTPUT_DIR=str(folder), SOLVER__LOG_PERIOD=log_period, SOLVER__CHECKPOINT_PERIOD=100)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {1, 2, 3})
        with pytest.raises(FloatingPointError, match=r"iteration 3, images .* 3 updates in a row"):
            run(cfg)
    (file,) = folder.glob("nonfinite_*.json")
    dump = json.loads(file.read_text())
    return dump, torch.load(folder / dump["weights"], weights_only=True)["model"]


def test_outcomes_read_late_lose_nothing(make_cfg: MakeCfg, tmp_path: Path) -> None:
    """Between two lines, an iteration's losses are read in the next one, before that changes the weights."""
    at_once, weights = dump_of(make_cfg, tmp_path / "at_once", log_period=1)
    late, other_weights = dump_of(make_cfg, tmp_path / "late", log_period=100)
    assert at_once == late
    assert all(torch.equal(value, other_weights[name]) for name, value in weights.items())
    rows = [json.loads(line) for line in (tmp_path / "late" / "metrics.json").read_text().splitlines()]
    assert {row["iteration"]: row.get("skipped_updates") for row in rows if "skipped_updates" in row} == {2: 2}
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0]


def test_losses_of_the_iteration_before_an_error_are_logged(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Stepper.run

    def stumble(self: Stepper, batches: Any, iteration: int, settle: Any) -> Any:
        if iteration == 2:
            raise RuntimeError("the device is gone")
        return real(self, batches, iteration, settle)

    monkeypatch.setattr(Stepper, "run", stumble)
    cfg = make_cfg(SOLVER__LOG_PERIOD=100)
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(cfg)
    rows = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [1]


def test_a_bad_update_before_another_error_is_reported(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {1})
    monkeypatch.setattr("san.d2.train.trainer.CheckpointHook.after_step", lambda self: self.trainer.iter and fail())
    cfg = make_cfg(SOLVER__LOG_PERIOD=100)
    with pytest.raises(RuntimeError, match="the device is gone"):
        run(cfg)
    log = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    assert "iteration 1: a loss is not finite" in log and "train_" in log.partition("iteration 1: ")[2]


def fail() -> None:
    raise RuntimeError("the device is gone")


def test_losses_of_the_iteration_before_a_stop_are_logged(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([False] * 6 + [True] * 2)  # twice in each iteration
    monkeypatch.setattr("san.d2.train.trainer.stopping.requested", lambda: next(asked))
    cfg = make_cfg(SOLVER__LOG_PERIOD=100, SOLVER__CHECKPOINT_PERIOD=100)
    with pytest.raises(StopRequested):
        run(cfg)
    rows = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [2]
    assert (Path(cfg.OUTPUT_DIR) / "model_0000002.pth").is_file()


def test_a_stop_after_one_bad_update_too_many_is_its_error(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([False] * 6 + [True] * 2)  # twice in each iteration
    monkeypatch.setattr("san.d2.train.trainer.stopping.requested", lambda: next(asked))
    spoil(monkeypatch, {2})
    cfg = make_cfg(SOLVER__LOG_PERIOD=100, SOLVER__MAX_NONFINITE=1)
    with pytest.raises(FloatingPointError, match="iteration 2, images"):
        run(cfg)
    rows = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [1]


def start_scale(patch: pytest.MonkeyPatch, scale: float) -> None:
    """Makes loss scaling start there."""
    real = torch.amp.GradScaler.__init__

    def init(self: Any, device: str, enabled: bool) -> None:
        real(self, device, scale, enabled=enabled)

    patch.setattr(torch.amp.GradScaler, "__init__", init)


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes in half precision on any CPU."""
    monkeypatch.setattr(trainer, "computes_bfloat16", lambda device: True)


@pytest.mark.usefixtures("half_precision")
def test_an_overflow_of_scaled_gradients_is_the_scalers(make_cfg: MakeCfg) -> None:
    """With fp16 the first scale is far too large; the scaler halves it, and no update is counted as skipped."""
    cfg = make_cfg(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE="fp16", SOLVER__MAX_NONFINITE=1, SOLVER__MAX_ITER=2)
    with pytest.MonkeyPatch.context() as patch:
        start_scale(patch, 2.0**100)
        run(cfg)
    state = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)["trainer"]["grad_scaler"]
    assert state["scale"] == 2.0**98


@pytest.mark.usefixtures("half_precision")
def test_a_gradient_that_scaling_cannot_mend_counts(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale has fallen below 1 and the gradient is still not finite."""
    spoil(monkeypatch, {0, 1, 2, 3, 4, 5}, "gradient")
    start_scale(monkeypatch, 2.0)
    cfg = make_cfg(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE="fp16", SOLVER__MAX_NONFINITE=2)
    with pytest.raises(FloatingPointError, match="iteration 2, .*: the gradient's norm is nan. 2 updates in a row"):
        run(cfg)


def _one_bad_rank(rank: int, port: int, folder: str) -> None:
    """Two processes; one has a bad loss in iteration 1, the other in none: both leave it out and go on together."""
    import torch.distributed as dist

    from san.d2.solver import SolverConfig
    from san.d2.train.iteration import StepConfig

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    layer = torch.nn.Linear(3, 1)
    torch.nn.init.ones_(layer.weight)

    class Losses(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            if batch[0].get("raise"):
                raise FloatingPointError("matching costs are not finite")
            return {"loss_mask": self.layer(batch[0]["x"]).sum()}

    model = torch.nn.parallel.DistributedDataParallel(Losses())
    stepper = Stepper(
        model, torch.optim.SGD(layer.parameters(), lr=0.1), StepConfig(SolverConfig(), "cpu", None, 1, 0.1)
    )
    outcomes = []
    for iteration in range(5):
        x = torch.full((3,), float(rank + 1))
        x = x * float("nan") if iteration == 3 and rank == 1 else x
        sample = {"x": x, "raise": iteration == 1 and rank == 0, "num_masks": 1}
        before = layer.weight.detach().clone()
        try:
            stepper.run([[sample]], iteration).read()
            outcomes.append("done")
        except NonFiniteError as error:
            assert torch.equal(layer.weight, before)
            outcomes.append(str(error))
    Path(folder, f"{rank}.json").write_text(json.dumps([outcomes, layer.weight.tolist()]))
    dist.destroy_process_group()


def _late(rank: int, port: int, cfg: Any) -> None:
    """One of two processes of a run whose outcomes are read late; see the test."""
    import torch.distributed as dist

    from san.d2.api import comm
    from san.d2.processes import launcher

    torch.set_num_threads(1)
    given = Stepper.losses
    calls = iter(range(100))

    def losses(self: Stepper, batch: Any, norm: Any) -> Any:
        number, found = next(calls), given(self, batch, norm)  # two steps per iteration
        if (rank, number) == (0, 4):
            raise FloatingPointError("matching costs are not finite")
        return found | {"loss_ce": found["loss_ce"] * float("nan")} if (rank, number) == (1, 3) else found

    Stepper.losses = losses  # type: ignore[method-assign]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    run(cfg)
    launcher.destroy_groups()


def test_processes_hear_late_of_bad_updates_and_go_on(make_cfg: MakeCfg) -> None:
    """A bad loss on one process, read in the next iteration, in which matching fails on the other process."""
    from san.d2.standin.launch import _find_free_port

    cfg = make_cfg(SOLVER__LOG_PERIOD=100, SOLVER__ACCUMULATION_STEPS=2, SOLVER__MAX_ITER=5)
    torch.multiprocessing.start_processes(_late, args=(_find_free_port(), cfg), nprocs=2, start_method="fork")
    log = (Path(cfg.OUTPUT_DIR) / "log.txt").read_text()
    assert "iteration 1, images " in log and "a loss is not finite" in log and "(1 in a row, 1 in all)" in log
    assert "iteration 2, images " in log and "matching costs are not finite" in log and "(2 in a row, 2 in all)" in log
    rows = [json.loads(line) for line in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    assert [row["skipped_updates"] for row in rows if "skipped_updates" in row] == [2]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [4]


def test_processes_leave_an_update_out_together(tmp_path: Path) -> None:
    from san.d2.standin.launch import _find_free_port

    torch.multiprocessing.start_processes(
        _one_bad_rank, args=(_find_free_port(), str(tmp_path)), nprocs=2, start_method="fork"
    )
    (first, weights), (second, others) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert weights == others
    assert [text == "done" for text in first] == [text == "done" for text in second] == [True, False, True, False, True]
    assert first[1] == "iteration 1: matching costs are not finite"
    assert second[1] == "iteration 1: a loss of another process is not finite"
    assert "loss_mask is nan" in second[3]
