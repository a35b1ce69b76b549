"""open_clip's configurations: each entry is understood or refused, and what is derived fits every CLIP."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from san.clip import open_clip_config
from san.clip.arch import TINY, ClipArch, TextArch, VisionArch
from san.clip.loader import LoadedClip, load_clip
from san.clip.open_clip_adapter import build_trainable_clip, model_config
from san.clip.open_clip_config import arch_of
from san.clip.timm_tower import TRUNKS
from san.clip.tokenizer import BpeTokenizer
from san.model.build import build_outline, build_san, freeze
from san.model.config import check_against, resolve, unseen_pixels, unusual_depth, variant, variant_for_clip
from tests.clip.small_clips import check_training, close

REPO = Path(__file__).resolve().parents[2]
ROWS: dict[str, Any] = json.loads((REPO / "tests/clip/clips.json").read_text(encoding="utf-8"))
PLAIN = {"embed_dim": 8, "vision_cfg": {"width": 64, "layers": 2}, "text_cfg": {"width": 64, "heads": 1, "layers": 1}}


def with_entry(section: str, key: str, value: Any) -> dict[str, Any]:
    """A configuration that is understood, with one more entry."""
    config = copy.deepcopy(PLAIN)
    (config[section] if section else config)[key] = value  # type: ignore[index]
    return config


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("vision_cfg", "qk_norm", True, "vision qk_norm=True"),
        ("vision_cfg", "pool_type", "avg", "vision pool_type='avg'"),
        ("vision_cfg", "act_kwargs", {"approximate": "tanh"}, "vision act_kwargs="),
        ("vision_cfg", "future_norm", 0, "vision future_norm=0, an entry that SAN does not know"),
        ("vision_cfg", "image_size", [224, 448], r"sizes .*224, 448.* is not one whole number"),
        ("vision_cfg", "layers", [3, 4, 6, 3], "vision is a ResNet, which has no tokens"),
        ("vision_cfg", "patch_size", 500, "clip_arch.vision.patch_size is 500, larger than"),
        ("vision_cfg", "head_width", 0, "sizes that SAN cannot use"),
        ("text_cfg", "embed_cls", True, "text embed_cls=True"),
        ("text_cfg", "future_mask", True, "text future_mask=True, an entry that SAN does not know"),
        ("", "multimodal_cfg", {}, "multimodal_cfg=.*, an entry that SAN does not know"),
        ("", "vision_cfg", None, "no image or no text tower"),
        ("", "embed_dim", None, "sizes that SAN cannot use"),
    ],
)
def test_what_is_not_understood_is_refused_by_name_and_value(section: str, key: str, value: Any, message: str) -> None:
    assert arch_of("plain", PLAIN).vision.num_heads == 1
    with pytest.raises(ValueError, match=rf"'strange'.*{message}"):
        arch_of("strange", with_entry(section, key, value))


@pytest.mark.parametrize(("kind", "table"), [(CLIPVisionCfg, "_VISION"), (CLIPTextCfg, "_TEXT")])
def test_the_defaults_of_the_installed_release_are_understood(kind: type, table: str) -> None:
    """An entry that a configuration leaves out has open_clip's default, which must be what SAN computes."""
    defaults = {each.name: each.default for each in dataclasses.fields(kind) if each.default is not dataclasses.MISSING}
    assert open_clip_config.strange_entries("", defaults, getattr(open_clip_config, table)) == []


def test_every_model_of_the_installed_release_is_read_or_refused() -> None:
    """A name in the table has the architecture of the table, in every release that has the name."""
    refused, known = {}, 0
    for name in open_clip.list_models():
        if model_config(name)["vision_cfg"].get("timm_model_name") in TRUNKS:
            continue  # tests/clip/test_timm_pool.py reads these
        try:
            arch = arch_of(name, model_config(name))
        except ValueError as error:
            refused[name] = str(error)
            continue
        known += name in ROWS
        assert name not in ROWS or ClipArch.from_dict(ROWS[name]["arch"]) == arch, name
    assert known >= 31
    assert not {"RN50", "convnext_base", "coca_ViT-B-32", "ViT-L-14-CLIPA", "ViT-M-16-alt"} - refused.keys()
    assert "ls_init_value=0.0001" in refused["ViT-M-16-alt"]
    assert "no tokens for an attention bias" in refused["convnext_base"]


def test_the_table_in_the_documentation_is_that_of_the_record() -> None:
    tool = runpy.run_path(str(REPO / "tools/maintainers/write_clip_table.py"))
    assert tool["page"](ROWS) == (REPO / "docs/clips.md").read_text(encoding="utf-8")
    measured = tool["measure"](ClipArch.from_dict(ROWS["ViT-B-32"]["arch"]))
    assert {key: ROWS["ViT-B-32"][key] for key in measured} | {"arch": measured["arch"]} == measured


def test_the_snippet_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for snippet in re.findall(
        r"^```python\n(.*?)^```", (REPO / "docs/clips.md").read_text(encoding="utf-8"), re.M | re.S
    ):
        exec(snippet, {})
    assert capsys.readouterr().out == "9 0.5\n"


def outline(arch: ClipArch) -> Any:
    """A SAN on a CLIP without values, with everything derived."""
    return build_outline(variant_for_clip("any", None), LoadedClip(arch, None, BpeTokenizer(77), fingerprint=""))


ALWAYS = ("ViT-H-14", "ViT-M-32", "ViT-bigG-14", "EVA02-B-16", "PE-Core-B-16", "ViT-B-16-SigLIP2", "ViT-L-14-worldwide")
EVERY = [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in sorted(ROWS)]


@pytest.mark.parametrize("name", EVERY)
def test_each_clip_of_the_table_is_built_at_full_size(name: str) -> None:
    """Without values. K, the fusion map, heads and scale are derived and fit; the counts are those of the table."""
    row = ROWS[name]
    trunk = row["arch"]["vision"]["trunk"]
    if trunk and not timm.is_model(trunk):
        pytest.skip(f"timm {timm.__version__} has no {trunk}")
    model = outline(ClipArch.from_dict(row["arch"]))
    freeze(model)
    assert sum(each.numel() for each in model.parameters()) == row["parameters"]
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) == row["trained"]
    assert model.config.clip.shallow_depth == row["depth"]
    assert not unseen_pixels(model.config, model.arch, 640)
    assert not unusual_depth(model.config, model.arch)


def test_the_published_models_are_what_is_derived() -> None:
    for name in ("vit_b16", "vit_l14_336"):
        given = variant(name)
        derived = resolve(variant_for_clip(given.clip.name, "openai"), load_clip(given.clip.name, None).arch)
        assert replace(derived, clip=replace(derived.clip, input_scale=given.clip.input_scale)) == given
        assert derived.clip.input_scale == {"vit_b16": 0.5, "vit_l14_336": 0.74375}[name]


@pytest.mark.parametrize("patch", [8, 14, 16, 18, 32])
def test_derived_values_fit_every_depth_and_image_size(patch: int) -> None:
    for depth in range(1, 129):
        side = patch * (7 + depth % 30)
        arch = replace(TINY, vision=VisionArch(side, patch, width=64, depth=depth, num_heads=4))
        config = resolve(variant_for_clip("any", None), arch)
        check_against(config, arch)
        assert not unusual_depth(config, arch)
        shallow = config.clip.shallow_depth
        assert 0 <= shallow < depth
        sources = [source for source, _ in config.side_adapter.fusion]
        assert sources == sorted(set(sources))
        assert (sources[0], sources[-1]) == (0, shallow)
        assert [block for _, block in config.side_adapter.fusion] == list(range(len(sources)))
        pixels = 640 * config.clip.input_scale
        assert not unseen_pixels(config, arch, 640)
        if config.clip.input_scale < 2:
            assert abs(pixels / side - 1.4) <= 0.5 * patch / side + 1e-3


SMALL_SIDE = replace(
    variant("tiny").side_adapter,
    embed_dim=48,
    num_heads=2,
    depth=4,
    num_queries=5,
    fusion="auto",
    supervised_blocks=(3, 4),
)
SIZES = {
    "B/32": (VisionArch(64, 32, 96, 4, 3), TextArch(width=64, depth=2, num_heads=2), True),
    "H/14": (VisionArch(56, 14, 160, 5, 2), TextArch(width=64, depth=1, num_heads=4), False),
    "bigG/14": (VisionArch(42, 14, 208, 3, 2, mlp_ratio=4.9231), TextArch(width=80, depth=2, num_heads=5), False),
    "M/16": (VisionArch(48, 16, 64, 1, 1), TextArch(width=64, depth=1, num_heads=2, context_length=20), True),
}


@pytest.mark.parametrize(("vision", "text", "quick_gelu"), SIZES.values(), ids=SIZES)
def test_towers_equal_open_clip_and_train(vision: VisionArch, text: TextArch, quick_gelu: bool) -> None:
    """Small models with the patches, head widths and MLP ratios of the large ones; split where K is derived."""
    torch.manual_seed(0)
    arch = ClipArch(48, vision, text, quick_gelu)
    reference = build_trainable_clip(arch).eval()
    assert_towers_equal(reference, arch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-32", "ViT-L-14-336"])
def test_towers_equal_open_clip_at_full_size(name: str) -> None:
    torch.manual_seed(0)
    arch = load_clip(name, None).arch
    assert_towers_equal(open_clip.create_model(name).eval(), arch)


def assert_towers_equal(reference: torch.nn.Module, arch: ClipArch) -> None:
    """Compare both towers with open_clip's, check [SLS] tokens at zero bias, and train a step."""
    state = {key: value for key, value in reference.state_dict().items() if not key.endswith("attn_mask")}
    clip = LoadedClip(arch, state, BpeTokenizer(arch.text.context_length), "")
    config = variant_for_clip("any", None)
    model = build_san(replace(config, side_adapter=SMALL_SIDE), clip=clip).eval()
    images = torch.randn(2, 3, arch.vision.image_size, arch.vision.image_size)
    ids = clip.tokenizer(["a cat", "a photo of two dogs on grass"])
    with torch.no_grad():
        close(model.text_classifier.encode_text(ids), reference.encode_text(ids))  # type: ignore[operator]
        features = model.shallow_clip(images)
        sls = model.sls_init(features.class_tokens[-1])
        no_bias = torch.zeros(2, 1, 1, 5, features.patch_tokens[-1].shape[1])
        found = model.deep_clip(features.class_tokens[-1], features.patch_tokens[-1], sls, no_bias)
        expected = reference.encode_image(images, normalize=True)  # type: ignore[operator]
        close(found, expected[:, None].expand(-1, 5, -1))
    check_training(model)
