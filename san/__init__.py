"""SAN: the Side Adapter Network for open-vocabulary semantic segmentation (arXiv 2302.12242).

`Predictor` segments a picture with any words, which `Vocabulary` can hold; `load_pretrained` gives the model of a name,
file or folder, `build_san` and `variant` make one. They are loaded at first use, so that importing `san` costs
nothing and has no side effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from san.hub import load_pretrained, push_to_hub, save_pretrained
    from san.inference.predictor import Predictor
    from san.inference.segmentation import EncodedImage, Segmentation
    from san.model.build import build_san
    from san.model.config import SANConfig, variant
    from san.vocabulary.classes import ClassText
    from san.vocabulary.vocabulary import Vocabulary

__version__ = "0.1.0"

__all__ = [
    "ClassText",
    "EncodedImage",
    "Predictor",
    "SANConfig",
    "Segmentation",
    "Vocabulary",
    "__version__",
    "build_san",
    "load_pretrained",
    "push_to_hub",
    "save_pretrained",
    "variant",
]

_HOMES = {
    "Predictor": "san.inference.predictor",
    "ClassText": "san.vocabulary.classes",
    "EncodedImage": "san.inference.segmentation",
    "Segmentation": "san.inference.segmentation",
    "Vocabulary": "san.vocabulary.vocabulary",
    "load_pretrained": "san.hub",
    "push_to_hub": "san.hub",
    "save_pretrained": "san.hub",
    "SANConfig": "san.model.config",
    "variant": "san.model.config",
    "build_san": "san.model.build",
}


def __getattr__(name: str) -> Any:
    """Loads a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"san has no {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
