"""Checkpoints: names both ways, strict loading, slim files."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from san.checkpoint import (
    from_published,
    load_checkpoint_file,
    load_weights,
    own_name,
    published_name,
    save_slim,
    to_published,
    trained_names,
)
from san.model.build import build_san
from san.model.config import variant
from san.model.san import SANModel


def make(seed: int, **clip: object) -> SANModel:
    torch.manual_seed(seed)
    config = variant("tiny")
    return build_san(replace(config, clip=replace(config.clip, **clip)))


def test_names_go_both_ways() -> None:
    for name in make(0).state_dict():
        assert own_name(published_name(name)) == name
        assert published_name(name) != name


def test_published_round_trip(tmp_path: Path) -> None:
    source, target = make(0), make(1)
    published = to_published(source.state_dict())
    assert published["side_adapter_network.mask_decoder.pix_mlp.layers.0.weight"].ndim == 4
    assert set(from_published(published)) == set(source.state_dict())
    for content in ({"model": published, "iteration": 59999}, published):
        torch.save(content, tmp_path / "san.pth")
        load_weights(target, tmp_path / "san.pth")
        for name, value in source.state_dict().items():
            torch.testing.assert_close(target.state_dict()[name], value, atol=0, rtol=0)


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
    with pytest.raises(ValueError, match=r"trained on the frozen CLIP 'tiny None'.*MODEL.CLIP.PRETRAINED"):
        load_weights(make(1), tmp_path / "slim.pth")


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
