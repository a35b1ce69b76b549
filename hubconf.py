"""Models for `torch.hub.load`.

torch.hub.load("path/to/this/folder", "shapes", source="local")
torch.hub.load("path/to/this/folder", "san_vit_b_16", source="local", pretrained=False)
torch.hub.load("path/to/this/folder", "predictor", "san_vit_b_16", source="local", device="cuda")

`shapes`, `san_vit_b_16` and `san_vit_large_14` return a `san.model.san.SANModel` in evaluation mode, `predictor` a
`san.Predictor`. See docs/checkpoints.md.
"""

from __future__ import annotations

from typing import Any

dependencies = [
    "torch", "torchvision", "open_clip", "timm", "ftfy", "regex", "safetensors", "huggingface_hub", "numpy", "PIL",
    "yaml", "tqdm",
]  # fmt: skip
"""Modules that torch.hub looks for first: the base requirements of pyproject.toml."""


def shapes(pretrained: bool = True, **options: Any) -> Any:
    """Return the committed small model of the shapes world.

    Args:
        pretrained: False returns a model with drawn weights and reads no checkpoint; only CLIP's of shapes, which are
            part of the package, are loaded.
        options: of `san.load_pretrained`, such as `cache_dir`; only with `pretrained`.
    """
    return _model("shapes", pretrained, options)


def san_vit_b_16(pretrained: bool = True, **options: Any) -> Any:
    """Return the authors' model on CLIP ViT-B/16; arguments as of `shapes`."""
    return _model("san_vit_b_16", pretrained, options)


def san_vit_large_14(pretrained: bool = True, **options: Any) -> Any:
    """Return the authors' model on CLIP ViT-L/14 at 336 pixels; arguments as of `shapes`."""
    return _model("san_vit_large_14", pretrained, options)


def predictor(model: str = "shapes", **options: Any) -> Any:
    """Return a predictor.

    Args:
        model: a name, a file, a folder, or an id on the hub of models.
        options: of `san.Predictor.from_pretrained`, such as `device` and `dtype`.
    """
    from san import Predictor

    return Predictor.from_pretrained(model, **options)


def _model(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    from san import build_san, load_pretrained, variant
    from san.hub import MODELS

    if pretrained:
        return load_pretrained(name, **options).eval()
    if options:
        raise ValueError(f"{', '.join(options)} is of no use with pretrained=False; leave it out")
    return build_san(variant(MODELS[name].variant), clip_weights=False).eval()
