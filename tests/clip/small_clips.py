"""Small CLIPs of open_clip with random weights, and what every family of image and text towers must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

from san.checkpoint import load_weights, save_slim
from san.clip.loader import LoadedClip
from san.clip.open_clip_config import arch_of
from san.clip.open_clip_names import from_open_clip
from san.clip.timm_tower import TRUNKS, Trunk
from san.clip.tokenizer import fitting_tokenizer
from san.hub import load_pretrained, save_pretrained
from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import variant, variant_for_clip
from san.model.san import SANModel

WORDS = [
    "cat",
    "katze",
    "chat",
    "猫",
    "γάτα",
    "кот",
    "قطة",
    "बिल्ली",
    "고양이",
    "red",
    "rot",
    "a",
    "photo",
    "of",
    "the",
    "car",
]
TEXT = {"width": 64, "heads": 2, "layers": 2}
SIDE = replace(
    variant("tiny").side_adapter,
    embed_dim=48,
    num_heads=2,
    depth=4,
    num_queries=5,
    fusion="auto",
    supervised_blocks=(3, 4),
)


def register_trunk(monkeypatch: pytest.MonkeyPatch, name: str, trunk: Trunk, build: Callable[..., Any]) -> None:
    """Add a small model to timm, and to the models that SAN knows, until the test ends."""
    monkeypatch.setattr(TRUNKS, "_entries", {**TRUNKS._entries, name: trunk})

    def make_model(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> Any:
        options.pop("pretrained_cfg_overlay", None), options.pop("cache_dir", None)
        model = build(**options)
        model.default_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)}
        return model

    monkeypatch.setitem(timm.models._registry._model_entrypoints, name, make_model)


def make_trunk_pair(
    name: str, pool: str, proj: str | None, embed_dim: int, text: dict[str, Any] | None = None
) -> tuple[Any, LoadedClip]:
    """Return open_clip's CLIP with a model of timm, and the same CLIP as SAN loads it."""
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": 64}
    return make_pair(vision, text or TEXT, embed_dim)


def make_pair(
    vision: dict[str, Any], text: dict[str, Any], embed_dim: int, text_tower: torch.nn.Module | None = None
) -> tuple[Any, LoadedClip]:
    """Return a CLIP of open_clip, and the same CLIP as SAN loads it.

    Args:
        vision: open_clip's entries for the image tower.
        text: for the text tower.
        embed_dim: E.
        text_tower: used instead of the one that open_clip makes.
    """
    if text.get("pool_type") == "eos" and not hasattr(CLIPTextCfg, "eos_id"):
        pytest.skip("this release of open_clip cannot read at the tokenizer's end-of-text")
    torch.manual_seed(0)
    own = {key: value for key, value in text.items() if not key.startswith("hf_model")}
    reference = CustomTextCLIP(embed_dim, CLIPVisionCfg(**vision), CLIPTextCfg(**own), init_logit_bias=-10).eval()
    reference.text = text_tower or reference.text
    for parameter in reference.parameters():  # initial biases are zero, and would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    arch = arch_of("small", {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "custom_text": True})
    state = {key: value for key, value in from_open_clip(reference.state_dict()).items() if value.is_floating_point()}
    state.pop("attn_mask", None)
    return reference, LoadedClip(arch, state, fitting_tokenizer(arch.text, None), "small")


def make_san(clip: LoadedClip) -> SANModel:
    """Return a small SAN on a CLIP, with everything derived."""
    config = variant_for_clip("tiny", None)
    head = replace(config.head, embed_channels=32, mlp_channels=32)
    return build_san(replace(config, side_adapter=SIDE, head=head), clip=clip).eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert a relative error of at most 1e-5."""
    assert found.shape == expected.shape
    assert ((found - expected).norm() / expected.norm()).item() <= 1e-5


def bare_recognition(model: SANModel, images: torch.Tensor, bias: float = 0.0) -> torch.Tensor:
    """Embeddings of the [SLS] tokens of images at CLIP's size, for random biases of a size."""
    clip = model.shallow_clip(images)
    sls = model.sls_init(model.deep_clip.start(clip.class_tokens[-1]))
    heads = model.arch.vision.bias_heads
    biases = bias * torch.randn(len(images), 1, heads, sls.shape[1], clip.patch_tokens[-1].shape[1])
    return model.deep_clip(clip.class_tokens[-1], clip.patch_tokens[-1], sls, biases, clip.grid)


def check_parity(reference: Any, model: SANModel) -> None:
    """Both towers equal open_clip's; with zero bias every [SLS] token is CLIP's own embedding, else it is not."""
    images = torch.randn(2, 3, 64, 64)
    ids = model.text_classifier.embedder.tokenizer(["a cat", "a photo of two dogs on grass"])
    with torch.no_grad():
        close(model.text_classifier.encode_text(ids), reference.encode_text(ids))
        expected = reference.encode_image(images, normalize=True)[:, None].expand(-1, 5, -1)
        close(bare_recognition(model, images), expected)
        assert (bare_recognition(model, images, bias=3.0) - expected).norm() > 1e-3 * expected.norm()


def check_training(model: SANModel) -> None:
    """Every tensor that is to be trained gets a gradient, and no frozen one."""
    model.train()
    output = model(torch.randn(1, 3, 96, 96), model.text_classifier.embed(["cat", "dog"]))
    layers = (output, *output.aux)
    sum((each.mask_logits.square().mean() + each.class_logits.square().mean()) for each in layers).backward()
    for name, parameter in model.named_parameters():
        got = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert got == parameter.requires_grad, name
    assert model.shallow_clip.positional_embedding.requires_grad


def check_files(model: SANModel, clip: LoadedClip, folder: Path) -> None:
    """A folder, a slim file and a model without initial values give the predictions of the model."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter) * parameter.requires_grad
    image = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    expected = Predictor(model, short_side=96).predict(image, "cat, red car").scores()
    save_pretrained(model, folder / "saved")
    save_slim(model, folder / "slim.pth")
    slim = build_san(model.config, clip=clip, drawn=False)
    load_weights(slim, folder / "slim.pth")
    for loaded in (load_pretrained(folder / "saved"), slim):
        assert loaded.arch == model.arch
        found = Predictor(loaded, short_side=96).predict(image, "cat, red car").scores()
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def write_tokenizer(folder: Path, *, start: bool = True) -> None:
    """Write a tokenizer of whole words in many languages, with XLM-RoBERTa's ids for its special tokens."""
    import tokenizers
    import transformers

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>" if start else "$A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
