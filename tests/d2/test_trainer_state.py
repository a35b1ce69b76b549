"""Going on from a checkpoint: changed settings are applied or refused, and an odd state changes nothing."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from san.checkpoint import load_checkpoint_file
from san.d2.checkpoints.checkpointer import SANCheckpointer
from san.d2.checkpoints.trainer_state import (
    check_finite_run,
    check_trainer_state,
    load_optimizer,
    recorded_settings,
    set_schedule,
)
from san.d2.config.keys import load_config
from san.d2.data.datasets import register_datasets
from san.d2.evaluate.resume import weights_digest
from san.d2.run import run
from san.d2.train.trainer import Trainer
from tests.d2.conftest import TINY, as_arguments

MakeCfg = Callable[..., Any]
State = dict[str, Any]


@pytest.fixture(scope="module")
def trainer(shared_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("odd")
    register_datasets(shared_voc)
    return Trainer(load_config("", as_arguments(TINY | {"DATASETS.ROOT": str(shared_voc), "OUTPUT_DIR": str(folder)})))


@pytest.fixture(scope="module")
def good(reference: Path) -> State:
    """The trainer part of a checkpoint; not to be changed."""
    return load_checkpoint_file(reference / "model_0000002.pth")["trainer"]


def moment(state: State, value: Any, key: str = "exp_avg") -> None:
    """Replaces a moment of the first tensor."""
    found = state["optimizer"]["state"][0]
    found[key] = value(found[key]) if callable(value) else value


def group(state: State, **changes: Any) -> None:
    state["optimizer"]["param_groups"][0].update(changes)


ODD: dict[str, tuple[Callable[[State], Any], str]] = {
    "no iteration": (lambda s: s.pop("iteration"), "iteration is None instead of an integer from 0"),
    "negative": (lambda s: s.update(iteration=-3), "iteration is -3"),
    "float": (lambda s: s.update(iteration=2.0), "iteration is 2.0"),
    "bool": (lambda s: s.update(iteration=True), "iteration is True"),
    "endless": (lambda s: s.update(iteration=10**400), "iteration is 10000"),
    "beyond": (lambda s: s.update(iteration=6), "7 iterations done, but SOLVER.MAX_ITER is 6; set it to 7 or more"),
    "seed": (lambda s: s.update(seed="x"), "seed is 'x'"),
    "hooks": (lambda s: s.update(hooks=[]), r"hooks is \[\]"),
    "a hook": (lambda s: s.update(hooks={"LRScheduler": 3}), "hook 'LRScheduler' is 3"),
    "scaler": (lambda s: s.update(grad_scaler=5), "grad_scaler is 5"),
    "scale": (lambda s: s.update(grad_scaler={"scale": math.nan}), "scale of grad_scaler is nan"),
    "inner": (lambda s: s.update(_trainer=[1]), r"_trainer is \[1\]"),
    "settings": (lambda s: s.update(solver={"SOLVER.BASE_LR": torch.ones(3)}), "SOLVER.BASE_LR' is tensor"),
    "no optimizer": (lambda s: s.pop("optimizer"), "optimizer is None"),
    "optimizer": (lambda s: s.update(optimizer=torch.ones(2)), "optimizer is tensor"),
    "no state": (lambda s: s["optimizer"].pop("state"), "optimizer state is None"),
    "no groups": (lambda s: s["optimizer"].pop("param_groups"), "parameter groups are None"),
    "empty groups": (lambda s: s["optimizer"].update(param_groups=[]), r"parameter groups are \[\]"),
    "one group": (lambda s: s["optimizer"].update(param_groups=s["optimizer"]["param_groups"][:1]), "belong to groups"),
    "a group": (lambda s: s["optimizer"].update(param_groups=[7]), "a parameter group is 7"),
    "no params": (lambda s: group(s, params=None), "tensors of a parameter group are None"),
    "params": (lambda s: group(s, params=[5, 6]), "not numbered consecutively"),
    "lr": (lambda s: group(s, lr=math.nan), "lr of a parameter group is nan"),
    "lr type": (lambda s: group(s, lr="0.1"), "lr of a parameter group is '0.1'"),
    "decay": (lambda s: group(s, weight_decay=math.inf), "weight_decay of a parameter group is inf"),
    "index": (lambda s: s["optimizer"]["state"].update({9999: {}}), "optimiser state of tensor 9999"),
    "name": (lambda s: s["optimizer"]["state"].update({"x": {}}), "optimiser state of tensor 'x'"),
    "values": (lambda s: s["optimizer"]["state"].update({0: 1}), r"optimiser state of \S+ is 1"),
    "missing": (lambda s: s["optimizer"]["state"][0].pop("exp_avg_sq"), "instead of step, exp_avg, exp_avg_sq"),
    "further": (lambda s: moment(s, 1, "max_exp_avg_sq"), "instead of step, exp_avg, exp_avg_sq"),
    "shape": (lambda s: moment(s, torch.zeros(1)), r"exp_avg of \S+ is dense, torch.float32, \(1,\) instead of"),
    "dtype": (lambda s: moment(s, torch.Tensor.double), "is dense, torch.float64"),
    "layout": (lambda s: moment(s, lambda t: torch.zeros(1).expand(t.shape)), "does not have the memory layout"),
    "sparse": (lambda s: moment(s, torch.Tensor.to_sparse), "is sparse"),
    "no tensor": (lambda s: moment(s, 0.5), "is 0.5 instead of a tensor"),
    "NaN": (lambda s: moment(s, lambda t: t * math.nan), "exp_avg of .* is NaN or infinite"),
    "infinite": (lambda s: moment(s, lambda t: t + math.inf, "exp_avg_sq"), "exp_avg_sq of .* is NaN or infinite"),
    "negative moment": (lambda s: moment(s, lambda t: t - 1, "exp_avg_sq"), "is negative"),
    "step": (lambda s: moment(s, torch.zeros(3), "step"), r"step of \S+ is dense, torch.float32, \(3,\)"),
    "NaN step": (lambda s: moment(s, torch.tensor(math.nan), "step"), "step of .* is NaN"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), ODD.values(), ids=ODD)
def test_an_odd_state_is_one_clear_error(
    trainer: Trainer, good: State, change: Callable[[State], Any], message: str
) -> None:
    state = copy.deepcopy(good)
    change(state)
    with pytest.raises(ValueError, match=message) as caught:
        trainer.load_state_dict(state)
    assert len(str(caught.value)) < 1000
    assert trainer.iter == 0 and not trainer.optimizer.state


@pytest.mark.parametrize("state", [None, 3, [], "x"])
def test_no_state_at_all(trainer: Trainer, state: Any) -> None:
    with pytest.raises(ValueError, match="only weights, no trainer state" if state is None else "trainer state is"):
        trainer.check_state_dict(state)


def test_a_good_state_is_taken(trainer: Trainer, good: State) -> None:
    """Also in the format of Detectron2's trainer, and without settings that older versions did not save."""
    inner = {key: value for key, value in good.items() if key not in ("hooks", "solver", "iteration")}
    for state in (good, {"_trainer": inner, "iteration": 2, "hooks": good["hooks"]}):
        trainer.check_state_dict(state)


def test_moments_of_shared_memory_are_taken_apart(trainer: Trainer, good: State) -> None:
    """An update would otherwise count as many steps at once as there are tensors."""
    state, shared = copy.deepcopy(good), torch.tensor(2.0)
    for values in state["optimizer"]["state"].values():
        values["step"] = shared
    load_optimizer(trainer.optimizer, state["optimizer"])
    steps = [values["step"] for values in trainer.optimizer.state.values()]
    steps[0].add_(1)
    assert steps[0] == 3 and all(step == 2 for step in steps[1:])


@pytest.mark.parametrize("part", ["trainer", "moment"])
def test_a_checkpoint_that_is_refused_changes_no_weight(
    make_cfg: MakeCfg, reference: Path, tmp_path: Path, part: str
) -> None:
    """Without a trainer part a run does not begin at iteration 1; neither are weights taken without the moments."""
    content = torch.load(reference / "model_0000002.pth", weights_only=True)
    if part == "trainer":
        del content["trainer"]
    else:
        moment(content["trainer"], torch.zeros(7))
    cfg = make_cfg()
    Path(cfg.OUTPUT_DIR).mkdir()
    torch.save(content, Path(cfg.OUTPUT_DIR) / "model_0000002.pth")
    register_datasets(cfg.DATASETS.ROOT)
    trainer = Trainer(cfg)
    before = weights_digest(trainer.san)
    with pytest.raises(ValueError, match=r"cannot resume from checkpoint \S+model_0000002.pth: "):
        trainer.resume_or_load(resume=True)
    assert weights_digest(trainer.san) == before and trainer.start_iter == 0
    SANCheckpointer(trainer.san).load(str(Path(cfg.OUTPUT_DIR) / "model_0000002.pth"), checkpointables=[])
    assert weights_digest(trainer.san) != before


def test_a_resumed_run_has_the_rates_of_its_configuration(make_cfg: MakeCfg, reference: Path) -> None:
    changes = {"SOLVER__BASE_LR": 5e-4, "SOLVER__WEIGHT_DECAY": 0.5, "SOLVER__MAX_ITER": 8, "SOLVER__POLY_POWER": 1.0}
    cfg = make_cfg(**changes)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    (folder / "model_0000002.pth").write_bytes((reference / "model_0000002.pth").read_bytes())
    run(cfg, resume=True)
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert {row["iteration"]: row["lr"] for row in rows if "lr" in row} == {
        number: pytest.approx(5e-4 * (1 - number / 8)) for number in range(3, 8)
    }
    state = load_checkpoint_file(folder / "model_final.pth")["trainer"]
    assert {group["weight_decay"] for group in state["optimizer"]["param_groups"]} == {0.5, 0.0}
    assert {group["initial_lr"] for group in state["optimizer"]["param_groups"]} == {5e-4}
    assert "SOLVER.BASE_LR is now 0.0005; it was 0.001" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("SOLVER.WEIGHT_DECAY_NORM", 0.01, "SOLVER.WEIGHT_DECAY_NORM was 0.0 and is 0.01 now"),
        ("SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.WEIGHT_DECAY was 0.0001 and is 0.0 now"),
        ("MODEL.CLIP.TRAIN_POS_EMBED", False, "MODEL.CLIP.TRAIN_POS_EMBED was True and is False now"),
    ],
)
def test_what_does_not_fit_the_moments_is_refused(
    make_cfg: MakeCfg, good: State, key: str, value: Any, shown: str
) -> None:
    cfg = make_cfg(**{key.replace(".", "__"): value})
    register_datasets(cfg.DATASETS.ROOT)
    trainer = Trainer(cfg)
    with pytest.raises(ValueError, match=shown):
        trainer.check_state_dict(good)


def test_decays_that_swap_tensors_between_groups_of_one_size() -> None:
    """The sizes alone would not show it."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.LayerNorm(1))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters()}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    keys = recorded_settings(load_config("", ["MODEL.DEVICE", "cpu"])) | {"SOLVER.WEIGHT_DECAY_NORM": 0.0}
    state = {"iteration": 1, "optimizer": optimizer.state_dict(), "solver": keys}
    check_trainer_state(state, model, optimizer, keys | {"SOLVER.WEIGHT_DECAY": 0.3})
    with pytest.raises(ValueError, match="WEIGHT_DECAY_EMBED was 0.0 and is 0.3 now"):
        check_trainer_state(state, model, optimizer, keys | {"SOLVER.WEIGHT_DECAY_EMBED": 0.3})


def test_the_schedule_is_put_where_steps_would_have_led() -> None:
    def schedule() -> torch.optim.lr_scheduler.LambdaLR:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: (1 - done / 7) ** 0.9)

    stepped, put = schedule(), schedule()
    for _ in range(3):
        stepped.optimizer.step()
        stepped.step()
    set_schedule(put, 3)
    assert put.state_dict() == stepped.state_dict()
    assert put.optimizer.param_groups[0]["lr"] == stepped.optimizer.param_groups[0]["lr"]


def test_a_run_never_ends_with_weights_that_are_not_finite(make_cfg: MakeCfg) -> None:
    cfg = make_cfg(SOLVER__BASE_LR=1e38, SOLVER__MAX_ITER=2, SOLVER__CHECKPOINT_PERIOD=1, SOLVER__WEIGHT_DECAY=10.0)
    with pytest.raises(FloatingPointError, match=r"after iteration \d .*NaN or infinite .*lower SOLVER.BASE_LR"):
        run(cfg)
    assert not (Path(cfg.OUTPUT_DIR) / "model_final.pth").exists()


def test_weights_buffers_and_moments_are_looked_at() -> None:
    model = torch.nn.BatchNorm1d(2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    check_finite_run(model, optimizer, 3)
    optimizer.state[model.bias]["exp_avg_sq"][1] = math.inf
    model.running_mean[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"after iteration 3 2 of 8 .*running_mean; exp_avg_sq of bias"):
        check_finite_run(model, optimizer, 3)
