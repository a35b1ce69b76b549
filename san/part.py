"""The base of exchangeable parts that are modules: those of a model, and the terms of its criterion."""

from __future__ import annotations

from typing import Any

from torch import nn

from san.record import Options
from san.registry import NoOptions


class Part(nn.Module):
    """A registered part; its registry calls its class with the part's options first.

    Attributes:
        Options: the part's own options, a frozen dataclass of `san.record.option` fields.
        version: changes when files that hold the part with an earlier one can no longer be used.
        param_rules: `san.d2.solver.ParamRule` for the part's parameters, by their names inside the part.
    """

    Options: type[Options] = NoOptions
    version = 1
    param_rules: tuple[Any, ...] = ()
