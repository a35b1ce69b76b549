"""Checkpoints: names both ways, strict loading, slim files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from san.checkpoint import brings_clip, fits, load_checkpoint_file, load_weights, save_slim, trained_names
from san.clip.loader import load_clip
from san.hub.loading import recognised_variant
from san.model.build import build_outline, build_san
from san.model.config import variant
from san.model.names import MMSEGMENTATION, NAMINGS, PUBLISHED, Naming, to_published
from san.model.san import SANModel

GOLDEN = Path(__file__).parent / "golden"


def make(seed: int, **clip: object) -> SANModel:
    torch.manual_seed(seed)
    config = variant("tiny")
    return build_san(replace(config, clip=replace(config.clip, **clip)))


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_names_go_both_ways(naming: Naming) -> None:
    for name in make(0).state_dict():
        assert naming.own_name(naming.name_of(name)) == name
        assert naming.name_of(name) != name


def test_published_round_trip(tmp_path: Path) -> None:
    source, target = make(0), make(1)
    published = to_published(source.state_dict())
    assert published["side_adapter_network.mask_decoder.pix_mlp.layers.0.weight"].ndim == 4
    assert set(PUBLISHED.to_own(published)) == set(source.state_dict())
    for content in ({"model": published, "iteration": 59999}, published):
        torch.save(content, tmp_path / "san.pth")
        load_weights(target, tmp_path / "san.pth")
        for name, value in source.state_dict().items():
            torch.testing.assert_close(target.state_dict()[name], value, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["vit_b16", "vit_l14_336"])
def test_names_and_shapes_of_mmsegmentation(name: str) -> None:
    """Those of its files, and what the published files call the same tensors."""
    theirs = json.loads((GOLDEN / "mmseg_keys.json").read_text())[name]
    config = variant(name)
    own = build_outline(config, load_clip(config.clip.name, config.clip.pretrained, weights=False)).state_dict()
    found = MMSEGMENTATION.from_own(own)
    assert {key: list(value.shape) for key, value in found.items()} == {key: e["shape"] for key, e in theirs.items()}
    back = MMSEGMENTATION.to_own(found)
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in own.items()}
    assert all(PUBLISHED.own_name(e["published"]) == MMSEGMENTATION.own_name(key) for key, e in theirs.items())


def test_a_file_of_mmsegmentation_loads_bit_for_bit(tmp_path: Path) -> None:
    source, target = make(0), make(1)
    state = MMSEGMENTATION.from_own(source.state_dict())
    assert torch.equal(state["decode_head.rec_with_attnbias.proj.weight"], source.deep_clip.proj.t())
    assert state["image_encoder.cls_token"].shape == (1, 1, source.arch.vision.width)
    torch.save({"meta": {"dataset_meta": {"classes": ["a"]}}, "state_dict": state}, tmp_path / "mmseg.pth")
    load_weights(target, tmp_path / "mmseg.pth")
    torch.testing.assert_close(target.state_dict(), source.state_dict(), atol=0, rtol=0)
    del state["decode_head.side_adapter_network.conv_clips.1.0.bias"]
    with pytest.raises(ValueError, match=r"side_adapter.fusions.1.norm.bias: missing"):
        load_weights(target, {"model": state})


def test_a_checkpoint_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    model = make(0)
    save_slim(model, tmp_path / "slim.pth")
    state = model.state_dict()
    for content in (
        {"model": state},
        {"model": to_published(state)},
        {"model": MMSEGMENTATION.from_own(state)},
        load_checkpoint_file(tmp_path / "slim.pth"),
    ):
        assert recognised_variant(content) == "tiny"
    assert recognised_variant({"model": state | {"more": torch.zeros(1)}}) is None
    assert recognised_variant({"model": {key: value for key, value in state.items() if "norm" not in key}}) is None


def test_own_names_round_trip(tmp_path: Path) -> None:
    source, target = make(0), make(1)
    torch.save({"model": source.state_dict()}, tmp_path / "own.pth")
    load_weights(target, tmp_path / "own.pth")
    torch.testing.assert_close(dict(target.state_dict()), dict(source.state_dict()), atol=0, rtol=0)


def test_every_difference_is_listed_and_nothing_changes() -> None:
    model = make(0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    published = to_published(make(1).state_dict())
    published.pop("side_adapter_network.query_embed")
    published["clip_rec_head.extra"] = torch.zeros(1)
    published["ov_classifier.bg_embed"] = torch.zeros(1, 7)
    with pytest.raises(ValueError, match="3 tensors differ") as caught:
        load_weights(model, {"model": published})
    for part in (
        "side_adapter.query_embed: missing",
        "deep_clip.extra: unexpected",
        "text_classifier.no_object_embed: (1, 7) instead of (1, 64)",
    ):
        assert part in str(caught.value)
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0, rtol=0)


WEIGHT = "side_adapter.blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda weight: weight.to(torch.complex64), f"{WEIGHT}: torch.complex64 instead of torch.float32"),
        (lambda weight: weight.int(), "torch.int32 instead of"),
        (lambda weight: weight > 0, "torch.bool instead of"),
        (lambda weight: weight.to_sparse(), "sparse instead of dense"),
        (lambda weight: weight.to("meta"), "meta instead of dense"),
        (lambda weight: torch.zeros(1).expand(1 << 40, 1), r"\(1099511627776, 1\) instead of \(432, 144\)"),
        (lambda weight: weight.index_fill(0, torch.tensor([1]), torch.nan), rf"{WEIGHT} \(144 of 62,208\)"),
        (lambda weight: torch.full_like(weight, 1e300, dtype=torch.float64), "NaN or infinite weights in 1 of 224"),
        pytest.param(
            lambda weight: weight.new_zeros(weight.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
            "float4_e2m1fn_x2 instead of",
            marks=pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="of later releases of torch"),
        ),
        (lambda weight: (weight / 0).half(), "NaN or infinite weights in 1 of 224 tensors"),
    ],
)
def test_what_is_no_weight_changes_nothing(value: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    """The wrong tensor is among the last, so that a load that begins and then fails would change many."""
    model, other = make(0), dict(make(1).state_dict())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other[WEIGHT] = value(other.pop(WEIGHT))
    with pytest.raises(ValueError, match=message):
        load_weights(model, {"model": other})
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0, rtol=0)


@pytest.mark.parametrize("key", [5, None, (1, 2), "", "x" * (1 << 20), "\x1b[2J\x1b]0;title\a\u202e"])
def test_names_that_no_tensor_has(key: Any, tmp_path: Path) -> None:
    model = make(0)
    torch.save({"model": {**model.state_dict(), key: torch.zeros(1)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth.*(unexpected|has a tensor named)") as caught:
        load_weights(model, tmp_path / "a.pth")
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_a_published_file_of_scalars_is_refused(tmp_path: Path) -> None:
    state = {key: torch.tensor(1.0) for key in to_published(make(0).state_dict())}
    with pytest.raises(ValueError, match=r"224 tensors differ|\(\) instead of"):
        load_weights(make(0), {"model": state})


def test_a_tensor_of_200_gb_that_is_not_there(tmp_path: Path) -> None:
    """The file system keeps its zeros in a few bytes; nothing of it is read to find that it does not fit."""
    path, size = tmp_path / "a.safetensors", 200 << 30
    head = f'{{"{WEIGHT}":{{"dtype":"F32","shape":[{size // 4}],"data_offsets":[0,{size}]}}}}'.encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    with open(path, "r+b") as file:
        file.truncate(8 + len(head) + size)
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        load_weights(make(0), path)


def test_entries_other_than_the_model_outlive_the_file(tmp_path: Path) -> None:
    """An optimiser keeps the tensors it is given; those of a mapped file would go with the file."""
    torch.save({"model": {"a": torch.ones(4)}, "trainer": {"b": torch.ones(4)}}, tmp_path / "a.pth")
    content = load_checkpoint_file(tmp_path / "a.pth")
    with open(tmp_path / "a.pth", "r+b") as file:
        file.write(bytes((tmp_path / "a.pth").stat().st_size))
    assert torch.equal(content["trainer"]["b"], torch.ones(4))


@pytest.mark.parametrize("half", [False, True])
def test_slim_file(tmp_path: Path, half: bool) -> None:
    source = make(0, train_pos_embed=False)
    torch.nn.init.normal_(source.bias_head.scale)
    save_slim(source, tmp_path / "slim.pth", half=half)
    assert set(load_checkpoint_file(tmp_path / "slim.pth")["model"]) == trained_names(source)
    target = make(0, train_pos_embed=False)
    torch.nn.init.zeros_(target.side_adapter.query_embed)
    load_weights(target, tmp_path / "slim.pth")
    tolerance = 1e-2 if half else 0.0
    for name, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], value, atol=tolerance, rtol=tolerance)


def test_slim_file_of_another_clip_is_refused(tmp_path: Path) -> None:
    save_slim(make(0), tmp_path / "slim.pth")
    with pytest.raises(ValueError, match=r"trained with the frozen CLIP 'tiny None'.*clip.pretrained"):
        load_weights(make(1), tmp_path / "slim.pth")


def test_slim_file_has_the_tensors_of_clip_that_were_tuned(tmp_path: Path) -> None:
    source = make(0)
    source.deep_clip.requires_grad_(True)
    with torch.no_grad():
        source.deep_clip.ln_post.weight.add_(1.0)
    save_slim(source, tmp_path / "slim.pth")
    content = load_checkpoint_file(tmp_path / "slim.pth")
    assert any(name.startswith("deep_clip.") for name in content["model"])
    assert not any(name.startswith("shallow_clip.resblocks.") for name in content["model"])
    assert not brings_clip(content)
    target = make(0)  # it does not know what was tuned
    assert fits(target, content)
    load_weights(target, tmp_path / "slim.pth")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    with pytest.raises(ValueError, match="trained with the frozen CLIP"):
        load_weights(make(1), tmp_path / "slim.pth")


def test_slim_file_without_the_list_of_clip_tensors(tmp_path: Path) -> None:
    """Files of earlier versions: they have what the model trains."""
    source = make(0)
    save_slim(source, tmp_path / "slim.pth")
    content = load_checkpoint_file(tmp_path / "slim.pth")
    del content["clip_tensors"]
    target = make(0)
    load_weights(target, content)
    assert torch.equal(target.side_adapter.query_embed, source.side_adapter.query_embed)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("/tmp/san-bomb", "w"))


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"model": Bomb()}))
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    (tmp_path / "none.pth").write_bytes(b"")
    torch.save({"model": {}}, tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("code.pth", "cut.pth", "none.pth", "empty.pth", "list.pth"):
        with pytest.raises(ValueError, match=name):
            load_checkpoint_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing.pth.*check the path"):
        load_checkpoint_file(tmp_path / "missing.pth")
    assert not Path("/tmp/san-bomb").exists()
