"""The trainer state of a checkpoint, which is validated completely before any of it is loaded.

Configured values, such as learning rate and weight decay, come from the configuration of the resumed run. Only results
of training, such as moments and the number of iterations, come from the checkpoint.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from san.clip.weights import listed_tensors
from san.clip.weights_file import kind_of_flaw
from san.d2.api import CfgNode, HookBase
from san.d2.config.yaml_file import flatten
from san.io.errors import excerpt

GROUPING = (
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_NORM",
    "SOLVER.WEIGHT_DECAY_EMBED",
    "MODEL.CLIP.TRAIN_POS_EMBED",
)
"""Keys that determine the trained tensors and their groups; if they change, the moments may not fit."""

RECORDED = (
    *GROUPING, "SOLVER.BASE_LR", "SOLVER.POLY_POWER", "SOLVER.MAX_ITER", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "SOLVER.LR_SCHEDULER_NAME", "SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_FACTOR", "SOLVER.EMA.DECAY",
)  # fmt: skip
"""Keys with values saved in checkpoints, to log the settings that a resumed run changes."""

MAX_ITERATION = 2**31

_MOMENTS = ("exp_avg", "exp_avg_sq")

logger = logging.getLogger("san.d2.trainer_state")


def recorded_settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the values of `RECORDED`."""
    values = dict(flatten(cfg))
    return {key: values[key] for key in RECORDED}


def flat_state(state: object) -> dict[str, Any]:
    """Convert a trainer's state to SAN's format; Detectron2's ``DefaultTrainer`` is supported too.

    Raises:
        ValueError: it is not the state of a trainer.
    """
    if state is None:
        raise ValueError("it contains only weights, no trainer state: start a new run with MODEL.WEIGHTS set to it")
    content = _mapping(state, "the trainer state")
    inner = _mapping(content.get("_trainer", {}), "_trainer")
    return {"grad_scaler": {}, "hooks": {}, "solver": {}} | dict(inner) | dict(content)


def check_trainer_state(
    state: object, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> None:
    """Check that training can resume from a state; changes nothing.

    Args:
        state: trainer state of a checkpoint.
        model: model with the optimizer's tensors.
        optimizer: AdamW of the resumed run.
        settings: `recorded_settings` of the resumed run.

    Raises:
        ValueError: a part is missing, of another type, shape or layout, not finite, or belongs to other tensors.
    """
    content = flat_state(state)
    done = _integer(content.get("iteration"), "iteration") + 1
    if done > settings["SOLVER.MAX_ITER"]:
        raise ValueError(
            f"it has {done} iterations done, but SOLVER.MAX_ITER is {settings['SOLVER.MAX_ITER']}; set it to {done} "
            "or more"
        )
    if "seed" in content:
        _integer(content["seed"], "seed", least=-1)
    for name, hook in _mapping(content["hooks"], "hooks").items():
        _mapping(hook, f"the state of the hook {excerpt(name)}")
    for name, value in _mapping(content["solver"], "solver").items():
        if type(value) not in (bool, int, float, str):
            raise ValueError(f"solver {excerpt(name)} is {excerpt(value)} instead of a number or a name")
    scaler = _mapping(content["grad_scaler"], "grad_scaler")
    if scaler:
        _number(scaler.get("scale"), "scale of grad_scaler")
        _integer(scaler.get("_growth_tracker"), "_growth_tracker of grad_scaler")
    found = _mapping(content.get("optimizer"), "optimizer")
    _check_groups(found.get("param_groups"), optimizer, content["solver"], settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = _mapping(found.get("state"), "optimizer state")
    for index, values in moments.items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError(f"it has an optimiser state of tensor {excerpt(index)}, but {len(parameters)} are trained")
        _check_moments(values, parameters[index], names.get(id(parameters[index]), f"tensor {index}"))
    if moments and len(moments) < len(parameters):
        logger.warning("The moments of %d tensors start from 0", len(parameters) - len(moments))


def _check_groups(
    groups: object, optimizer: torch.optim.Optimizer, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Compare the parameter groups of the state with those of the run."""
    if not isinstance(groups, list) or not groups:
        raise ValueError(f"its optimiser's parameter groups are {excerpt(groups)} instead of a list of groups")
    sizes = []
    for group in groups:
        params = _mapping(group, "a parameter group").get("params")
        if not isinstance(params, list):
            raise ValueError(f"the tensors of a parameter group are {excerpt(params)} instead of a list of numbers")
        sizes.append(len(params))
        for key in ("lr", "weight_decay"):
            _number(group.get(key), f"{key} of a parameter group")
    if [number for group in groups for number in group["params"]] != list(range(sum(sizes))):
        raise ValueError("the tensors of its parameter groups are not numbered consecutively")
    own = [len(group["params"]) for group in optimizer.param_groups]
    changed = [key for key in GROUPING if key in before and before[key] != now[key]]
    if sizes == own and _same_grouping(before, now):
        return
    reason = "; ".join(f"{key} was {excerpt(before[key])} and is {now[key]} now" for key in changed)
    raise ValueError(
        f"its moments belong to groups of {sizes[:20]} trained tensors, but this run has groups of {own[:20]}: "
        f"{reason or 'the trained part of the model has changed'}; restore the earlier setting to resume"
    )


def _same_grouping(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the same weight decays are equal in both runs, so that each group has the same tensors."""
    if not all(key in before for key in GROUPING):
        return True  # earlier versions did not save them
    kinds = GROUPING[:3]
    pairs = [(first, second) for first in kinds for second in kinds]
    return all((before[a] == before[b]) == (now[a] == now[b]) for a, b in pairs) and (
        before[GROUPING[3]] == now[GROUPING[3]]
    )


def _check_moments(values: object, parameter: Tensor, name: str) -> None:
    """Check the state of one tensor; a wrong shape would make the optimizer's kernel read out of bounds."""
    found = _mapping(values, f"the optimiser state of {name}")
    if set(found) != {"step", *_MOMENTS}:
        raise ValueError(
            f"the optimiser state of {name} has {excerpt(list(found))} instead of step, exp_avg, exp_avg_sq"
        )
    for key, value in found.items():
        title = f"{key} of {name}"
        wanted = torch.Size() if key == "step" else parameter.shape
        dtype = torch.float32 if key == "step" else parameter.dtype
        if not isinstance(value, Tensor):
            raise ValueError(f"{title} is {excerpt(value)} instead of a tensor")
        flaw = kind_of_flaw(value)
        if flaw or value.shape != wanted or value.dtype != dtype:
            is_now = f"{flaw or 'dense'}, {value.dtype}, {excerpt(tuple(value.shape))}"
            raise ValueError(f"{title} is {is_now} instead of dense, {dtype}, {tuple(wanted)}")
        if not value.is_contiguous() and value.stride() != parameter.stride():
            raise ValueError(f"{title} does not have the memory layout of its tensor; write the checkpoint again")
        if not value.isfinite().all():
            raise ValueError(f"{title} is NaN or infinite; resume from a checkpoint before the divergence")
        if key != "exp_avg" and (value < 0).any():
            raise ValueError(f"{title} is negative, which training never produces")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the moments of a state checked by `check_trainer_state`; learning rates and weight decays are kept."""
    groups = optimizer.state_dict()["param_groups"]
    # copies, because tensors of a file may share memory, and an update of one would change the others
    moments = {number: {key: value.clone() for key, value in own.items()} for number, own in state["state"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def set_schedule(scheduler: torch.optim.lr_scheduler.LambdaLR, done: int) -> None:
    """Advance a schedule to an iteration; its base rates and length are kept.

    Args:
        scheduler: schedule that was not stepped yet.
        done: number of completed iterations.
    """
    rates = [base * factor(done) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    state = scheduler.state_dict() | {"last_epoch": done, "_step_count": done + 1, "_last_lr": rates}
    scheduler.load_state_dict(state)


def own_hooks(hooks: Iterable[HookBase], states: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states to load into a run's hooks, by class name, without the schedule's; see `set_schedule`."""
    takers = {type(hook).__qualname__ for hook in hooks if hasattr(hook, "load_state_dict")}
    for name in states.keys() - takers:
        logger.warning("The checkpoint's state of the hook %s is ignored: this run has no such hook", excerpt(name))
    return {name: state for name, state in states.items() if name in takers and name != "LRScheduler"}


def load_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Load the loss scale if both runs scale losses."""
    if state and scaler.is_enabled():
        taken = {key: state[key] for key in ("scale", "_growth_tracker")}
        scaler.load_state_dict(scaler.state_dict() | taken)


def check_finite_run(model: nn.Module, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    """Check that trained tensors and moments are finite; synchronizes with the device once.

    Args:
        model: model, not wrapped.
        optimizer: optimizer of its trained tensors.
        iteration: the last completed iteration.

    Raises:
        FloatingPointError: the message names the tensors.
    """
    tensors: dict[str, Tensor] = dict(model.named_buffers())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[name] = parameter.detach()
            moments = optimizer.state.get(parameter, {})
            tensors |= {f"{key} of {name}": moments[key] for key in _MOMENTS if key in moments}
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    finite = torch.stack([tensor.isfinite().all() for tensor in floats.values()]).tolist()
    wrong = [name for name, good in zip(floats, finite, strict=True) if not good]
    if wrong:
        raise FloatingPointError(
            f"after iteration {iteration} {len(wrong)} of {len(floats)} trained tensors and moments are NaN or "
            f"infinite ({listed_tensors(wrong)}); no checkpoint of them is written, earlier ones are unchanged; lower "
            "SOLVER.BASE_LR, then resume from an earlier checkpoint with --resume, or start a new run"
        )


def log_changes(before: object, now: Mapping[str, Any]) -> None:
    """Log which settings a resumed run has changed."""
    if isinstance(before, Mapping):
        for key, value in now.items():
            if key in before and before[key] != value:
                logger.info("%s is now %s; it was %s", key, value, excerpt(before[key]))


def _mapping(value: object, title: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{title} is {excerpt(value)} instead of a dictionary")
    return value


def _integer(value: object, title: str, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value < MAX_ITERATION:
        raise ValueError(f"{title} is {excerpt(value)} instead of an integer from {least} to {MAX_ITERATION - 1}")
    return value


def _number(value: object, title: str) -> None:
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{title} is {excerpt(value)} instead of a finite number that is 0 or more")
