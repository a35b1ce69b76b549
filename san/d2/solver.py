"""What is optimised and how fast: parameter groups, AdamW, the polynomial schedule, gradient clipping.

Source: docs/method.md#8.4. The golden files `optimizer_groups_vit_b16.json` and `learning_rate.json` guard it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

EMBEDDING_LEAVES = (
    "query_embed",
    "query_pos_embed",
    "pos_embed",
    "positional_embedding",
)
"""Last parts of the names of positional and query embeddings, which are not decayed."""


@dataclass(frozen=True)
class SolverConfig:
    """How SAN is optimised.

    Attributes:
        base_lr: learning rate at the first iteration, above 0.
        weight_decay: of every tensor but those below, 0 or more.
        weight_decay_norm: of the parameters of LayerNorm modules.
        weight_decay_embed: of positional and query embeddings.
        betas: AdamW's two decay rates of the moments.
        max_iter: iterations of the whole schedule.
        power: exponent of the polynomial decay to 0.
        clip_norm: L2 norm to which the gradient of the whole model is clipped; 0 clips nothing.

    Raises:
        ValueError: if a value lies outside its range.
    """

    base_lr: float = 1e-4
    weight_decay: float = 1e-4
    weight_decay_norm: float = 0.0
    weight_decay_embed: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_iter: int = 60000
    power: float = 0.9
    clip_norm: float = 0.01

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if not (math.isfinite(self.base_lr) and self.base_lr > 0):
            raise ValueError(f"SOLVER.BASE_LR is {self.base_lr}; give a finite number above 0, such as 1e-4")
        if self.max_iter < 1:
            raise ValueError(f"SOLVER.MAX_ITER is {self.max_iter}; give at least 1")
        for name in ("weight_decay", "weight_decay_norm", "weight_decay_embed", "power", "clip_norm"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ValueError(f"{name} of the solver is {value}; give a finite number that is 0 or more")


def weight_decays(model: nn.Module, config: SolverConfig) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Names every trained tensor and its weight decay.

    Not decayed by default are the parameters of `nn.LayerNorm` modules, and positional and query embeddings. The
    channel norms in front of the fused CLIP features are decayed, as published: they are no `nn.LayerNorm` there.

    Args:
        model: its parameters with ``requires_grad``, each once.
        config: the decays.

    Yields:
        Full name, parameter, weight decay.
    """
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = config.weight_decay
            if isinstance(module, nn.LayerNorm):
                decay = config.weight_decay_norm
            elif leaf in EMBEDDING_LEAVES:
                decay = config.weight_decay_embed
            yield f"{module_name}.{leaf}".lstrip("."), parameter, decay


def build_optimizer(model: nn.Module, config: SolverConfig) -> torch.optim.AdamW:
    """AdamW with one parameter group per weight decay.

    Args:
        model: what to train.
        config: rates and decays.

    Returns:
        The optimiser. Groups are in the order in which their decay first occurs, the same in every run.

    Raises:
        ValueError: if nothing in the model is trained.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for _, parameter, decay in weight_decays(model, config):
        groups.setdefault(decay, []).append(parameter)
    if not groups:
        raise ValueError("the model has no trained parameter; set requires_grad on some before building the optimizer")
    return torch.optim.AdamW(
        [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()],
        lr=config.base_lr,
        betas=config.betas,
        fused=True,  # one kernel for all tensors instead of a dozen per tensor; on CPUs too
    )


def poly_factor(config: SolverConfig) -> Callable[[int], float]:
    """The factor on the base learning rate at an iteration counted from 0: (1 - i / max_iter) ** power."""

    def factor(iteration: int) -> float:
        return max(0.0, 1.0 - iteration / config.max_iter) ** config.power

    return factor


def build_lr_scheduler(optimizer: torch.optim.Optimizer, config: SolverConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The polynomial schedule to 0 without warm-up; call its ``step`` after every iteration.

    Args:
        optimizer: whose learning rates it sets.
        config: length and power.

    Returns:
        The scheduler. Its ``state_dict`` holds the iteration, so it resumes.
    """
    return torch.optim.lr_scheduler.LambdaLR(optimizer, poly_factor(config))


def clip_gradient(optimizer: torch.optim.Optimizer, config: SolverConfig) -> torch.Tensor:
    """Clips the L2 norm of the gradient of all tensors together, in place.

    Args:
        optimizer: whose tensors make up the whole model.
        config: the norm to clip to; with 0 the norm is only measured.

    Returns:
        The norm before clipping, a scalar tensor.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm or math.inf)
