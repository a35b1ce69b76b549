"""The base class of exchangeable modules of a model or a criterion, and rules for parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from san.record import Options, field_metadata, option
from san.registry import NoOptions


@dataclass(frozen=True)
class ParamRule(Options):
    """Training settings for some parameters that differ from the rest."""

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
    """Base of registered parts; the registry calls the class with the part's options as the first argument.

    Attributes:
        Options: the part's own options, a frozen dataclass of `san.record.option` fields.
        version: increased when files with an earlier version of the part can no longer be used.
        param_rules: rules for the part's parameters, by their names inside the part.
    """

    Options: type[Options] = NoOptions
    version = 1
    param_rules: tuple[ParamRule, ...] = ()
