"""`torch.hub.load` from the repository's folder."""

from __future__ import annotations

import re
from inspect import isfunction
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

import hubconf
from san.hub import MODELS, load_pretrained
from san.inference.predictor import Predictor
from tests.test_base_install import DISTRIBUTIONS


def load(repo: Path, name: str, *args: Any, **options: Any) -> Any:
    return torch.hub.load(str(repo), name, *args, source="local", **options)


def test_every_model_has_an_entry() -> None:
    assert {name for name, each in vars(hubconf).items() if isfunction(each) and name[0] != "_"} == {
        *MODELS, "predictor",
    }  # fmt: skip


def test_shapes(repo: Path) -> None:
    model = load(repo, "shapes")
    assert not model.training
    torch.testing.assert_close(dict(model.state_dict()), dict(load_pretrained("shapes").state_dict()), atol=0, rtol=0)
    assert isinstance(load(repo, "predictor", text_cache=None), Predictor)
    drawn = load(repo, "shapes", pretrained=False)
    assert drawn.config == model.config
    assert not torch.equal(drawn.side_adapter.query_embed, model.side_adapter.query_embed)
    with pytest.raises(ValueError, match="cache_dir is of no use"):
        load(repo, "shapes", pretrained=False, cache_dir="x")


@pytest.mark.parametrize("name", ["san_vit_b_16", "san_vit_large_14"])
def test_published_models_without_weights(repo: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read or downloaded; drawing the weights is left out here, which takes seconds."""
    made = []

    def build(*args: Any, **options: Any) -> torch.nn.Module:
        made.append((args, options))
        return torch.nn.Module()

    monkeypatch.setattr("san.build_san", build, raising=False)
    load(repo, name, pretrained=False)
    (((config,), options),) = made
    assert options == {"clip_weights": False}
    assert config.clip.name == {"san_vit_b_16": "ViT-B-16", "san_vit_large_14": "ViT-L-14-336"}[name]


@pytest.mark.slow
def test_vit_b_16_is_drawn(repo: Path) -> None:
    model = load(repo, "san_vit_b_16", pretrained=False)
    num_bytes = sum(4 * value.numel() for value in model.parameters())
    assert num_bytes == pytest.approx(MODELS["san_vit_b_16"].num_bytes, rel=1e-3)


def test_a_name_without_weights_here_says_what_to_download(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"san_vit_b_16\.pth of Mendel192/san .* put it into"):
        load(repo, "san_vit_b_16", cache_dir=str(tmp_path), local_files_only=True)


def test_dependencies_are_the_base_requirements(repo: Path) -> None:
    text = (repo / "pyproject.toml").read_text(encoding="utf-8")
    ((block),) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    wanted = {Requirement(each).name for each in re.findall(r'^ *"(.*?)"', block, re.MULTILINE)}
    assert {DISTRIBUTIONS.get(each, each) for each in hubconf.dependencies} == wanted
