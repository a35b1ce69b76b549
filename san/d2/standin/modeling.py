"""Stands in for `detectron2.modeling`: the registry of meta-architectures, and building one by its name."""

from __future__ import annotations

import torch
from fvcore.common.registry import Registry
from torch import nn

from san.d2.standin.config import CfgNode

META_ARCH_REGISTRY = Registry("META_ARCH")
"""Whole models by name. A registered class or function is called with the configuration and returns an `nn.Module`."""


def build_model(cfg: CfgNode) -> nn.Module:
    """Builds ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``; loads no weights.

    Args:
        cfg: the configuration, also handed to the meta-architecture.

    Returns:
        The model, on its device.

    Raises:
        KeyError: if no meta-architecture has that name.
    """
    model: nn.Module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
