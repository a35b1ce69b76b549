"""The part of a checkpoint that training goes on from: looked at as a whole before any of it is taken.

Everything a configuration says, such as learning rate and weight decay, is taken from the run's own; only what
training has made, such as moments and the number of iterations, from the checkpoint.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from san.clip.weights import listed
from san.clip.weights_file import flaw_of
from san.d2.api import CfgNode, HookBase
from san.d2.config.yaml_file import flatten
from san.errors import excerpt

GROUPING = (
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_NORM",
    "SOLVER.WEIGHT_DECAY_EMBED",
    "MODEL.CLIP.TRAIN_POS_EMBED",
)
"""Keys that decide which tensors are trained and in which groups: a change of them may not fit the moments."""

RECORDED = (
    *GROUPING, "SOLVER.BASE_LR", "SOLVER.POLY_POWER", "SOLVER.MAX_ITER", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "SOLVER.LR_SCHEDULER_NAME", "SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_FACTOR", "SOLVER.EMA.DECAY",
)  # fmt: skip
"""Keys whose values a checkpoint keeps, to name what a resumed run changes."""

MAX_ITERATION = 2**31

_MOMENTS = ("exp_avg", "exp_avg_sq")

logger = logging.getLogger("san.d2.trainer_state")


def recorded_settings(cfg: CfgNode) -> dict[str, Any]:
    """The values of `RECORDED`."""
    values = dict(flatten(cfg))
    return {key: values[key] for key in RECORDED}


def flat_state(state: object) -> dict[str, Any]:
    """A trainer's state in our form, also that of Detectron2's ``DefaultTrainer``.

    Raises:
        ValueError: it is no state of a trainer.
    """
    if state is None:
        raise ValueError("it has no trainer part, but weights alone: start a new run with MODEL.WEIGHTS set to it")
    content = _mapping(state, "the trainer part")
    inner = _mapping(content.get("_trainer", {}), "_trainer")
    return {"grad_scaler": {}, "hooks": {}, "solver": {}} | dict(inner) | dict(content)


def check_trainer_state(
    state: object, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> None:
    """Refuses a state that training cannot go on from; changes nothing.

    Args:
        state: a trainer's, as a checkpoint has it.
        model: has the optimiser's tensors.
        optimizer: AdamW, of the run that goes on.
        settings: `recorded_settings` of that run.

    Raises:
        ValueError: a part is missing, of another kind, shape or layout, not finite, or of other trained tensors.
    """
    content = flat_state(state)
    done = _integer(content.get("iteration"), "iteration") + 1
    if done > settings["SOLVER.MAX_ITER"]:
        raise ValueError(
            f"it has {done} iterations done, but SOLVER.MAX_ITER is {settings['SOLVER.MAX_ITER']}; set it to {done} or "
            "more"
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
    """The parameter groups of the state, against those of the run."""
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
        raise ValueError("the tensors of its parameter groups are not numbered one after the other")
    own = [len(group["params"]) for group in optimizer.param_groups]
    changed = [key for key in GROUPING if key in before and before[key] != now[key]]
    if sizes == own and _divides_alike(before, now):
        return
    reason = "; ".join(f"{key} was {excerpt(before[key])} and is {now[key]} now" for key in changed)
    raise ValueError(
        f"its moments are of other groups of trained tensors ({sizes[:20]}) than this run's ({own[:20]}): "
        f"{reason or 'the trained part of the model has changed'}; set it back to go on"
    )


def _divides_alike(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether weight decays that are equal in one run are equal in the other: then each group has the same tensors."""
    if not all(key in before for key in GROUPING):
        return True  # of a version that did not keep them
    kinds = GROUPING[:3]
    pairs = [(first, second) for first in kinds for second in kinds]
    return all((before[a] == before[b]) == (now[a] == now[b]) for a, b in pairs) and (
        before[GROUPING[3]] == now[GROUPING[3]]
    )


def _check_moments(values: object, parameter: Tensor, name: str) -> None:
    """What the optimiser keeps of one tensor; its kernel goes by the tensor's own shape and would read beyond it."""
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
        flaw = flaw_of(value)
        if flaw or value.shape != wanted or value.dtype != dtype:
            is_now = f"{flaw or 'dense'}, {value.dtype}, {excerpt(tuple(value.shape))}"
            raise ValueError(f"{title} is {is_now} instead of dense, {dtype}, {tuple(wanted)}")
        if not value.is_contiguous() and value.stride() != parameter.stride():
            raise ValueError(f"{title} is not laid out in memory as its tensor; write the checkpoint again")
        if not value.isfinite().all():
            raise ValueError(f"{title} is NaN or infinite; go on from a checkpoint of before the training broke down")
        if key != "exp_avg" and (value < 0).any():
            raise ValueError(f"{title} is negative, which no training makes it")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Takes the moments of a state that `check_trainer_state` has passed; rates and decays stay the optimiser's own."""
    groups = optimizer.state_dict()["param_groups"]
    # copies: tensors of a file may share their memory, and an update would change all of them at once
    moments = {number: {key: value.clone() for key, value in own.items()} for number, own in state["state"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def set_schedule(scheduler: torch.optim.lr_scheduler.LambdaLR, done: int) -> None:
    """Puts a schedule where its own base rates and length have it after some iterations.

    Args:
        scheduler: as built, not stepped yet.
        done: iterations.
    """
    rates = [base * factor(done) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    state = scheduler.state_dict() | {"last_epoch": done, "_step_count": done + 1, "_last_lr": rates}
    scheduler.load_state_dict(state)


def own_hooks(hooks: Iterable[HookBase], states: Mapping[str, Any]) -> dict[str, Any]:
    """The states that hooks of a run take up, by class name; the schedule's is not among them, see `set_schedule`."""
    takers = {type(hook).__qualname__ for hook in hooks if hasattr(hook, "load_state_dict")}
    for name in states.keys() - takers:
        logger.warning("The checkpoint's state of the hook %s is left out: this run has no such hook", excerpt(name))
    return {name: state for name, state in states.items() if name in takers and name != "LRScheduler"}


def load_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Takes the scale of losses, where both runs scale them."""
    if state and scaler.is_enabled():
        taken = {key: state[key] for key in ("scale", "_growth_tracker")}
        scaler.load_state_dict(scaler.state_dict() | taken)


def check_finite_run(model: nn.Module, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    """Refuses to keep what training has made where it is NaN or infinite; waits for the device once.

    Args:
        model: not wrapped.
        optimizer: of its trained tensors.
        iteration: the last one that was done.

    Raises:
        FloatingPointError: with the tensors.
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
            f"infinite ({listed(wrong)}); no checkpoint of them is written, earlier ones are untouched; lower "
            "SOLVER.BASE_LR, then go on with --resume from an earlier checkpoint, or start anew"
        )


def log_changes(before: object, now: Mapping[str, Any]) -> None:
    """Logs which settings a resumed run has changed."""
    if isinstance(before, Mapping):
        for key, value in now.items():
            if key in before and before[key] != value:
                logger.info("%s is %s from here on; it was %s", key, value, excerpt(before[key]))


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
