"""Any loader, any naming: a checkpoint is loaded as a whole or refused, by the model itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from san.checkpoint import load_checkpoint_file, load_weights, save_slim
from san.d2 import SAN, SANCheckpointer
from san.d2.api import BACKEND, DetectionCheckpointer, build_model
from san.d2.checkpoints.checkpointer import weights_file
from san.d2.config.keys import load_config
from san.hub import SHAPES_CHECKPOINT, save_pretrained
from san.model.names import to_published

REPO = Path(__file__).resolve().parents[2]


def make(weights: str | Path = "", *options: str) -> SAN:
    torch.manual_seed(1)
    config = str(REPO / "configs/shapes/san_shapes.yaml")
    model: SAN = build_model(load_config(config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(weights), *options]))
    return model


@pytest.fixture(scope="module")
def fresh() -> SAN:
    """With CLIP's weights; tests copy it."""
    return make()


@pytest.fixture(scope="module")
def trained(fresh: SAN) -> SAN:
    model = copy.deepcopy(fresh)
    load_weights(model.model, SHAPES_CHECKPOINT)
    for parameter in model.model.deep_clip.parameters():
        assert not parameter.requires_grad
    return model


def is_same(model: nn.Module, other: nn.Module) -> bool:
    state = model.state_dict()
    return all(torch.equal(state[name], value) for name, value in other.state_dict().items())


FORMS: dict[str, Callable[[SAN], dict[str, Any]]] = {
    "slim": lambda model: load_checkpoint_file(SHAPES_CHECKPOINT),
    "slim tensors": lambda model: dict(load_checkpoint_file(SHAPES_CHECKPOINT)["model"]),
    "run": lambda model: {"model": model.state_dict(), "trainer": {"iteration": 3}, "iteration": 3},
    "inner": lambda model: dict(model.model.state_dict()),
    "published": lambda model: {"model": to_published(model.model.state_dict())},
    "distributed": lambda model: {"model": prefixed(model.state_dict(), "module.")},
    "published, compiled": lambda model: prefixed(to_published(model.model.state_dict()), "module._orig_mod."),
}


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_through_every_loader(form: str, fresh: SAN, trained: SAN, tmp_path: Path) -> None:
    content = FORMS[form](trained)
    path = str(tmp_path / "given.pth")
    torch.save(content, path)
    tensors = content.get("model", content)

    def load_wrapped(model: SAN) -> None:
        own = tensors if all(name.startswith("module.") for name in tensors) else prefixed(tensors, "module.")
        nn.ModuleDict({"module": model}).load_state_dict(own)

    loaders: dict[str, Callable[[SAN], Any]] = {
        "load_state_dict, tensors": lambda model: model.load_state_dict(tensors),
        "load_state_dict, content": lambda model: model.load_state_dict(torch.load(path, weights_only=True)),
        "wrapped": load_wrapped,
        "DetectionCheckpointer": lambda model: DetectionCheckpointer(model).load(path),
        "SANCheckpointer": lambda model: SANCheckpointer(model).load(path, checkpointables=[]),
    }
    if "model" in content:  # else it takes nothing
        loaders["Checkpointer"] = lambda model: Checkpointer(model).load(path)
    for name, load in loaders.items():
        model = copy.deepcopy(fresh)
        load(model)
        assert is_same(model, trained), name
    assert not is_same(fresh, trained)


def test_a_slim_file_into_a_model_frozen_as_a_whole(fresh: SAN, trained: SAN) -> None:
    model = copy.deepcopy(fresh).requires_grad_(False)
    DetectionCheckpointer(model).load(str(SHAPES_CHECKPOINT))
    assert is_same(model, trained)


@pytest.mark.detectron2
@pytest.mark.skipif(BACKEND != "detectron2", reason="Detectron2's own file formats")
@pytest.mark.parametrize("form", ["inner", "published"])
def test_name_matching_of_detectron2_changes_nothing(form: str, fresh: SAN, trained: SAN, tmp_path: Path) -> None:
    content = FORMS[form](trained)
    torch.save(content, tmp_path / "given.pth")
    arrays = {name: value.numpy() for name, value in content.get("model", content).items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}))
    for name in ("given.pth?matching_heuristics=True", "zoo.pkl"):
        model = copy.deepcopy(fresh)
        DetectionCheckpointer(model).load(str(tmp_path / name))
        assert is_same(model, trained), name


@pytest.mark.parametrize("loader", ["DetectionCheckpointer", "strict=False"])
def test_what_does_not_load_is_an_error_that_lists_it(loader: str, fresh: SAN, trained: SAN, tmp_path: Path) -> None:
    model, state = copy.deepcopy(fresh), trained.state_dict()
    del state["model.side_adapter.query_embed"]
    state["model.text_classifier.no_object_embed"] = torch.zeros(3)
    state["other.weight"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "bad.pth")
    checkpointer = DetectionCheckpointer(model)
    load = checkpointer.load if loader == "DetectionCheckpointer" else lambda _: model.load_state_dict(state, False)
    with pytest.raises(ValueError, match="3 tensors differ") as caught:
        load(str(tmp_path / "bad.pth"))
    for part in ("model.side_adapter.query_embed: missing", "no_object_embed: ", "other.weight: unexpected"):
        assert part in str(caught.value)
    assert is_same(model, fresh)


def test_a_slim_file_needs_its_clip(fresh: SAN, trained: SAN, tmp_path: Path) -> None:
    """Pretrained, and of its fingerprint where the file has one: inside the tensors, or read from MODEL.WEIGHTS."""
    content = load_checkpoint_file(SHAPES_CHECKPOINT)
    untrained = make("", "MODEL.CLIP.PRETRAINED", "''")
    with pytest.raises(ValueError, match=r"leaves CLIP's weights to MODEL.CLIP.PRETRAINED.*conv1.weight: missing"):
        untrained.load_state_dict(dict(content["model"]), strict=False)
    other = copy.deepcopy(fresh)
    with torch.no_grad():
        other.model.deep_clip.proj.mul_(2)
    for path in (SHAPES_CHECKPOINT, tmp_path / "slim.pth"):
        save_slim(trained.model, tmp_path / "slim.pth")
        for load in (DetectionCheckpointer(other).load, lambda path: other.load_state_dict(torch.load(path))):
            with pytest.raises(ValueError, match="trained with the frozen CLIP 'shapes shapes'"):
                load(str(path))
    former = content | {"model": dict(content["model"])}  # as files were before: no note inside the tensors
    torch.save(former, tmp_path / "former.pth")
    with pytest.raises(ValueError, match="trained with the frozen CLIP 'shapes shapes'"):
        make(tmp_path / "former.pth", "MODEL.CLIP.PRETRAINED", "''")


def test_clip_comes_from_the_checkpoint_or_from_its_own_weights(trained: SAN, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def build(config: Any, *, clip_weights: bool) -> Any:
        asked.append(clip_weights)
        return copy.deepcopy(trained.model)

    monkeypatch.setattr("san.d2.meta_arch.build_san", build)
    for name, form in FORMS.items():
        torch.save(form(trained), tmp_path / "given.pth")
        make(tmp_path / "given.pth")
        assert asked.pop() == name.startswith("slim"), name


def test_a_model_whose_weights_were_never_loaded_predicts_nothing(trained: SAN) -> None:
    model = copy.deepcopy(trained).eval()
    model.model.has_clip_weights = False  # as with an open_clip tag, whose weights MODEL.WEIGHTS holds
    with pytest.raises(ValueError, match="MODEL.WEIGHTS, which was not loaded"):
        model([{"image": torch.zeros(3, 64, 64)}])
    model.load_state_dict(trained.state_dict())
    assert model.model.has_clip_weights


def test_folders(trained: SAN, tmp_path: Path) -> None:
    run, saved = tmp_path / "run", tmp_path / "saved"
    run.mkdir()
    with pytest.raises(FileNotFoundError, match="neither a checkpoint of a run"):
        weights_file(str(run))
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        make(tmp_path / "gone")
    save_pretrained(trained.model, saved)
    SANCheckpointer(trained, str(run)).save("model_0000004", iteration=4)
    assert weights_file(str(run)) == str(run / "model_0000004.pth")
    (run / "model_0000009.pth").write_bytes(b"")  # half of a save: not the one that last_checkpoint names
    assert weights_file(str(run)) == str(run / "model_0000004.pth")
    for folder in (run, saved):
        model = make(folder)
        assert not is_same(model, trained)
        SANCheckpointer(model).load(str(folder), checkpointables=[])
        assert is_same(model, trained)
    (run / "last_checkpoint").unlink()
    torch.save({"model": trained.state_dict()}, run / "model_final.pth")
    assert weights_file(str(run)) == str(run / "model_final.pth")


@pytest.mark.parametrize(
    "address", ["foo://bar/x.pth", "http://127.0.0.1:1/x.pth", "http://user:pa/ss@127.0.0.1:1/x.pth"]
)
def test_an_address_that_cannot_be_downloaded(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"checkpoint \S+x.pth cannot be downloaded \(.*\); .* set MODEL.WEIGHTS to it"
    ):
        SANCheckpointer(nn.Linear(2, 2)).load(address)
