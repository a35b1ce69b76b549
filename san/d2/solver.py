"""Optimisation: parameter groups, AdamW, learning-rate schedules, gradient clipping.

Source: docs/method.md#8.4. The golden files `optimizer_groups_vit_b16.json` and `learning_rate.json` test it.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from san.clip.text_classifier import OWN_PARAMETERS
from san.io.errors import excerpt
from san.part import ParamRule
from san.record import FieldError, Options, option, read_record

EMBEDDING_LEAVES = (
    "query_embed",
    "query_pos_embed",
    "pos_embed",
    "positional_embedding",
    "context_offset",
)
"""Last parts of the names of positional, query and prompt embeddings, which are not decayed."""


PACKED = ("in_proj_weight", "in_proj_bias", "qkv.weight", "qkv.bias")
"""Suffixes of tensors with the projections to queries, keys and values, a third of the rows each."""


@dataclass(frozen=True)
class SolverConfig(Options):
    """Options of the optimiser and the schedule.

    Raises:
        FieldError: a value is out of range.
    """

    PLACE: ClassVar[str] = "solver."
    base_lr: float = option(1e-4, "learning rate where the schedule starts", above=0)
    weight_decay: float = option(1e-4, "AdamW's, of all tensors but those of the next two kinds", least=0, most=1000)
    weight_decay_norm: float = option(0.0, "of LayerNorm modules", least=0, most=1000)
    weight_decay_embed: float = option(0.0, "of positional and query embeddings", least=0, most=1000)
    betas: tuple[float, float] = (0.9, 0.999)
    max_iter: int = option(60000, "iterations of the whole schedule", least=1, most=10**9)
    lr_scheduler_name: str = option(
        "WarmupPolyLR",
        "schedule of the learning rate, which falls to 0 at MAX_ITER: polynomially (published) or as half a cosine",
        choices=("WarmupPolyLR", "WarmupCosineLR"),
    )
    warmup_iters: int = option(
        0, "first iterations, in which the schedule is multiplied by a linear rise to 1; 0: none", least=0, most=10**9
    )
    warmup_factor: float = option(0.001, "factor at which that rise starts", least=0, most=1)
    power: float = option(
        0.9, "of WarmupPolyLR: lr = BASE_LR * (1 - iteration / MAX_ITER) ** POLY_POWER; 0: constant", least=0, most=1000
    )
    clip_norm: float = option(
        0.01, "L2 norm to which the gradient of the whole model is clipped; 0: not clipped", least=0, most=10**9
    )
    param_rules: tuple[Mapping[str, Any], ...] = option(
        (),
        "rules for parameters, the later winning: mappings with MATCH (a pattern of names) and LR_MULTIPLIER, "
        "WEIGHT_DECAY, FROZEN or PROJECTIONS (docs/extend.md)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.rules

    @property
    def rules(self) -> tuple[ParamRule, ...]:
        """Parsed `param_rules`."""
        found = []
        for index, rule in enumerate(self.param_rules):
            if not isinstance(rule, Mapping):
                raise FieldError(
                    f"solver.param_rules holds {excerpt(rule)}; give mappings such as "
                    "{MATCH: '*deep_clip.*', LR_MULTIPLIER: 0.1, FROZEN: false}",
                    "solver.param_rules",
                )
            given = {str(name).lower(): value for name, value in rule.items()}
            found.append(read_record(ParamRule, given, f"solver.param_rules[{index}]."))
        return tuple(found)


@dataclass(frozen=True)
class TrainedParameter:
    """A trained tensor with its full name and its options for AdamW."""

    name: str
    parameter: nn.Parameter
    weight_decay: float
    lr_multiplier: float = 1.0


def trained_parameters(model: nn.Module, config: SolverConfig) -> Iterator[TrainedParameter]:
    """Return every trained tensor with its options for AdamW.

    By default, parameters of `nn.LayerNorm` modules, positional embeddings and query embeddings are not decayed. The
    channel norms before the fused CLIP features are decayed, as published: there they are not `nn.LayerNorm` modules.
    Rules of parts (`Part.param_rules`) override this, and rules of the configuration override both. A tensor is not
    decayed if only some of its projections are trained.

    Args:
        model: parameters with ``requires_grad`` are returned, each once.
        config: decays and rules.
    """
    seen: set[nn.Parameter] = set()
    rules = [*_rules_of_parts(model), *config.rules]
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay, multiplier = config.weight_decay, 1.0
            if isinstance(module, nn.LayerNorm):
                decay = config.weight_decay_norm
            elif leaf in EMBEDDING_LEAVES:
                decay = config.weight_decay_embed
            name = f"{module_name}.{leaf}".lstrip(".")
            for rule in rules:
                if fnmatch.fnmatchcase(name, rule.match):
                    decay = decay if rule.weight_decay is None else rule.weight_decay
                    multiplier = rule.lr_multiplier
            if _projections_of(name, rules):
                decay = 0.0  # decay would change the projections that are not trained
            yield TrainedParameter(name, parameter, decay, multiplier)


def apply_frozen(model: nn.Module, config: SolverConfig) -> None:
    """Freeze and unfreeze parameters, or projections of them, by the rules of parts and of the configuration.

    Raises:
        ValueError: a rule matches no parameter, trains the text tower (its embeddings are computed once), or names
            projections of a tensor that is not a packed projection.
    """
    names, rules = dict(model.named_parameters()), [*_rules_of_parts(model), *config.rules]
    for rule in rules:
        found = fnmatch.filter(names, rule.match)
        if not found:
            raise ValueError(
                f"SOLVER.PARAM_RULES matches no parameter with {rule.match!r}; names look like {next(iter(names))!r}, "
                "and * stands for any characters"
            )
        fixed = [name for name in found if "text_classifier." in name and not name.endswith(OWN_PARAMETERS)]
        if rule.frozen is False and fixed:
            raise ValueError(
                f"SOLVER.PARAM_RULES trains {fixed[0]} with {rule.match!r}, but text embeddings are computed once, "
                "without a gradient; leave the text tower frozen"
            )
        for name in found:
            if rule.frozen is not None:
                names[name].requires_grad_(not rule.frozen)
        odd = [name for name in found if rule.projections and not name.endswith(PACKED)]
        if odd:
            raise ValueError(
                f"SOLVER.PARAM_RULES trains the projections {rule.projections!r} of {odd[0]} with {rule.match!r}, but "
                f"only names that end in {', '.join(PACKED)} hold queries, keys and values; correct MATCH"
            )
    for name, parameter in names.items():
        if parameter.requires_grad and (kept := _projections_of(name, rules)):
            _train_projections(parameter, kept)


def _projections_of(name: str, rules: Sequence[ParamRule]) -> str:
    """Return the trained projections of a tensor, by the last rule that matches it; "" for all of it."""
    return next((rule.projections for rule in reversed(rules) if fnmatch.fnmatchcase(name, rule.match)), "")


def _train_projections(parameter: nn.Parameter, kept: str) -> None:
    """Zero the gradient of the other projections; AdamW without decay then keeps them bit for bit."""

    def without_others(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        for letter, rows in zip("qkv", gradient.chunk(3), strict=True):
            if letter not in kept:
                rows.zero_()
        return gradient

    parameter.register_hook(without_others)


def _rules_of_parts(model: nn.Module) -> list[ParamRule]:
    """Return the rules of the parts, with patterns of full names."""
    return [
        replace(rule, match=f"{name}.{rule.match}".lstrip("."))
        for name, module in model.named_modules()
        for rule in getattr(module, "param_rules", ())
    ]


def build_optimizer(model: nn.Module, config: SolverConfig) -> torch.optim.AdamW:
    """Build AdamW with one parameter group per weight decay and multiplier of the learning rate.

    Args:
        model: the model to train.
        config: rates, decays and rules.

    Returns:
        The optimiser. Groups are in the order of the first occurrence of their values, the same in every run.

    Raises:
        ValueError: no parameter of the model is trained, or a rule does not fit the model.
    """
    apply_frozen(model, config)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for each in trained_parameters(model, config):
        groups.setdefault((each.weight_decay, each.lr_multiplier), []).append(each.parameter)
    if not groups:
        raise ValueError("the model has no trained parameter; set requires_grad on some before building the optimizer")
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr": config.base_lr * multiplier}
            for (decay, multiplier), parameters in groups.items()
        ],
        lr=config.base_lr,
        betas=config.betas,
        fused=True,  # one kernel for all tensors instead of a dozen per tensor; also on CPUs
    )


def poly_factor(config: SolverConfig) -> Callable[[int], float]:
    """Return the factor on the base learning rate at iteration i, from 0: (1 - i / max_iter) ** power."""

    def factor(iteration: int) -> float:
        return max(0.0, 1.0 - iteration / config.max_iter) ** config.power

    return factor


def cosine_factor(config: SolverConfig) -> Callable[[int], float]:
    """Return the factor on the base learning rate at an iteration, from 0: half a cosine from 1 to 0."""

    def factor(iteration: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, iteration / config.max_iter)))

    return factor


_SCHEDULES = {"WarmupPolyLR": poly_factor, "WarmupCosineLR": cosine_factor}


def schedule_factor(config: SolverConfig) -> Callable[[int], float]:
    """Return the factor on the base learning rate at an iteration, from 0, with warm-up.

    In the first `warmup_iters` iterations the schedule is multiplied by a factor that rises linearly from
    `warmup_factor` to 1. Detectron2's classes ``WarmupCosineLR`` and (DeepLab) ``WarmupPolyLR`` do the same.
    """
    curve = _SCHEDULES[config.lr_scheduler_name](config)
    if not config.warmup_iters:
        return curve

    def factor(iteration: int) -> float:
        share = min(1.0, iteration / config.warmup_iters)
        return (config.warmup_factor * (1 - share) + share) * curve(iteration)

    return factor


def build_lr_scheduler(optimizer: torch.optim.Optimizer, config: SolverConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the schedule of SOLVER.LR_SCHEDULER_NAME, which decays to 0; call its ``step`` after every iteration.

    Args:
        optimizer: the schedule sets its learning rates.
        config: schedule, length, power and warm-up.

    Returns:
        The scheduler. Its ``state_dict`` has the iteration, so it can be resumed.
    """
    return torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_factor(config))


def clip_gradient(optimizer: torch.optim.Optimizer, config: SolverConfig) -> torch.Tensor:
    """Clip the L2 norm of the gradient of all tensors together, in place.

    Args:
        optimizer: has all trained tensors of the model.
        config: has the maximum norm; with 0 the norm is only computed.

    Returns:
        The norm before clipping, a scalar tensor.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm or math.inf)
