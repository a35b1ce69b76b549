"""The base of exchangeable parts that are modules, in a model or a criterion, and rules for parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from san.record import Options, field_metadata, option
from san.registry import NoOptions


@dataclass(frozen=True)
class ParamRule(Options):
    """How some parameters are trained, other than the rest."""

    match: str = field(metadata=field_metadata("pattern of full parameter names, such as *deep_clip.resblocks.*"))
    lr_multiplier: float = option(1.0, "factor on the learning rate", least=0, most=1000)
    weight_decay: float | None = option(None, "AdamW's; empty: as without the rule", least=0, most=1000)
    frozen: bool | None = option(None, "True: not trained; False: trained, also where SAN freezes; empty: unchanged")
    projections: str = option(
        "",
        "of a packed attention projection, such as CLIP's in_proj, the parts that train; empty: all",
        choices=("", "q", "k", "v", "qk", "qv", "kv"),
    )


class Part(nn.Module):
    """A registered part; its registry calls its class with the part's options first.

    Attributes:
        Options: the part's own options, a frozen dataclass of `san.record.option` fields.
        version: changes when files that hold the part with an earlier one can no longer be used.
        param_rules: for the part's own parameters, by their names inside the part.
    """

    Options: type[Options] = NoOptions
    version = 1
    param_rules: tuple[ParamRule, ...] = ()
