"""Loads models by name, file, folder or Hugging Face repository, and publishes them.

Names that need PyTorch are imported on first access, so that the table of models is available without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from san.hub.locations import find_here
from san.hub.remote import hand_folder, hub_folder
from san.hub.table import MODELS, SHAPES_CHECKPOINT, KnownModel

if TYPE_CHECKING:
    from san.hub.folder import save_pretrained
    from san.hub.loading import load_pretrained, push_to_hub

__all__ = [
    "MODELS",
    "SHAPES_CHECKPOINT",
    "KnownModel",
    "find_here",
    "hand_folder",
    "hub_folder",
    "load_pretrained",
    "push_to_hub",
    "save_pretrained",
]

_MODULES = {
    "load_pretrained": "san.hub.loading",
    "push_to_hub": "san.hub.loading",
    "save_pretrained": "san.hub.folder",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module san.hub has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
