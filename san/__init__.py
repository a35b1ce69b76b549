"""SAN: the Side Adapter Network for open-vocabulary semantic segmentation (arXiv 2302.12242).

`Predictor` segments a picture with any words; `build_san` and `variant` make the model itself. They are loaded when
first asked for, so that importing `san` costs nothing and has no side effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from san.model.build import build_san
    from san.model.config import SANConfig, variant
    from san.predictor import Predictor, Segmentation

__version__ = "0.1.0"

__all__ = ["Predictor", "SANConfig", "Segmentation", "__version__", "build_san", "variant"]

_HOMES = {
    "Predictor": "san.predictor",
    "Segmentation": "san.predictor",
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
