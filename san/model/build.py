"""From a configuration to a model: CLIP's weights in, everything frozen that is not trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from san.clip.loader import LoadedClip, load_clip
from san.model.config import SANConfig
from san.model.san import SANModel


def build_san(config: SANConfig, *, clip: LoadedClip | None = None, clip_weights: bool = True) -> SANModel:
    """A SAN with CLIP's weights and fresh side weights.

    Args:
        config: the model.
        clip: a CLIP already loaded, instead of `config.clip.name` and `config.clip.pretrained`.
        clip_weights: False leaves CLIP's weights to a checkpoint that holds them all; nothing is downloaded.

    Raises:
        ValueError, FileNotFoundError: see `load_clip` and `check_against`.
    """
    clip = clip or load_clip(config.clip.name, config.clip.pretrained, weights=clip_weights)
    model = SANModel(config, clip.arch, clip.tokenizer)
    if clip.state_dict is not None:
        _load_clip_weights(model, clip.state_dict)
    freeze(model)
    return model


def freeze(model: SANModel) -> None:
    """Leaves trainable what SAN trains: side network, heads, "no object" and, if asked for, CLIP's positions."""
    for module in (model.shallow_clip, model.deep_clip):
        module.requires_grad_(False)
    for parameter in model.text_classifier.frozen_parameters():
        parameter.requires_grad_(False)
    model.shallow_clip.positional_embedding.requires_grad_(model.config.clip.train_pos_embed)


def clip_state_to_own(state_dict: Mapping[str, Tensor], shallow_depth: int) -> dict[str, Tensor]:
    """CLIP weights under open_clip's names to our own: the image tower's blocks are dealt out to the two parts."""
    own = {}
    for key, value in state_dict.items():
        if not key.startswith("visual."):
            own[f"text_classifier.{key}"] = value
            continue
        key = key.removeprefix("visual.")
        if key.startswith("transformer.resblocks."):
            index, _, leaf = key.removeprefix("transformer.resblocks.").partition(".")
            part, number = (
                ("shallow_clip", int(index))
                if int(index) < shallow_depth
                else ("deep_clip", int(index) - shallow_depth)
            )
            own[f"{part}.resblocks.{number}.{leaf}"] = value
        else:
            own[f"{'deep_clip' if key == 'proj' or key.startswith('ln_post') else 'shallow_clip'}.{key}"] = value
    return own


def _load_clip_weights(model: SANModel, state_dict: Mapping[str, Tensor]) -> None:
    own = clip_state_to_own(state_dict, model.config.clip.shallow_depth)
    expected = {key: value.shape for key, value in model.state_dict().items() if is_clip_tensor(key)}
    wrong = [f"{key}: missing" for key in expected.keys() - own.keys()]
    wrong += [f"{key}: unexpected" for key in own.keys() - expected.keys()]
    wrong += [
        f"{key}: {tuple(own[key].shape)} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in own and own[key].shape != shape
    ]
    if wrong:
        raise ValueError(
            f"the weights {model.config.clip.pretrained!r} do not fit CLIP {model.config.clip.name!r}; "
            f"set MODEL.CLIP.NAME to the model they belong to. {len(wrong)} tensors differ: "
            + "; ".join(sorted(wrong)[:20])
        )
    model.load_state_dict(own, strict=False)


def is_clip_tensor(key: str) -> bool:
    """Whether a tensor of the model's state belongs to CLIP rather than to what SAN adds."""
    return (
        key.startswith(("shallow_clip.", "deep_clip.", "text_classifier.")) and key != "text_classifier.no_object_embed"
    )
