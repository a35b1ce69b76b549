"""Models as files, folders and repositories: saved, loaded, fetched, found without a network, uploaded."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from san.checkpoint import save_slim
from san.clip import open_clip_adapter, text_cache
from san.clip.loader import load_clip, save_clip_file
from san.hub import MODELS, SHAPES_CHECKPOINT, find_here, load_pretrained, push_to_hub, save_pretrained
from san.hub import remote as remote_module
from san.hub.folder import describe, read_config
from san.hub.locations import find_known
from san.hub.remote import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from san.inference.predictor import Predictor
from san.io.redaction import redact_home
from san.model.attention_bias import AttentionBiasHead
from san.model.build import build_san
from san.model.config import HeadConfig, variant
from san.model.heads import MaskHead
from san.model.names import to_published
from san.model.parts import BIAS_HEADS
from san.model.san import SANModel
from san.record import read_record
from san.registry import PartConfig
from san.shapes.clip import CLIP_FILE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_ThisIsSecret"


@cache
def make(seed: int = 0) -> SANModel:
    torch.manual_seed(seed)
    return build_san(variant("tiny"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(make(), tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a saved model, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(remote_module, "getproxies", dict)


def assert_same(one: SANModel, other: SANModel, **tolerance: float) -> None:
    torch.testing.assert_close(
        dict(one.state_dict()), dict(other.state_dict()), **(tolerance or {"atol": 0, "rtol": 0})
    )


# --- the table of names


def test_the_table_fits_the_files(golden: Path) -> None:
    """Sizes are those of the project's files, and of the published tensors."""
    assert MODELS["shapes"].num_bytes == SHAPES_CHECKPOINT.stat().st_size + CLIP_FILE.stat().st_size
    for name, keys in (("san_vit_b_16", "vit_b16"), ("san_vit_large_14", "vit_l14_336")):
        shapes = json.loads((golden / f"checkpoint_keys_{keys}.json").read_text())["state_dict"].values()
        assert MODELS[name].num_bytes == sum(4 * int(torch.tensor(shape).prod()) if shape else 4 for shape in shapes)
        assert MODELS[name].variant == keys


def test_shapes_by_name() -> None:
    model = load_pretrained("shapes")
    assert model.config == variant("shapes")
    trained = torch.load(SHAPES_CHECKPOINT, weights_only=True)["model"]
    assert torch.equal(model.side_adapter.query_embed, trained["side_adapter.query_embed"].float())
    assert find_here(MODELS["shapes"]) == SHAPES_CHECKPOINT


@pytest.mark.parametrize("name", ["shape", "/gone/model.pth", "gone/model.safetensors", "a/b/c"])
def test_what_is_nothing_is_refused(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a file or folder.*shapes, san_vit_b_16, san_vit_large_14"):
        load_pretrained(name)


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_is_no_model(tmp_path: Path, saved: Path) -> None:
    """Its folder is not loaded either."""
    shutil.copytree(saved, tmp_path / "model")
    os.mkfifo(tmp_path / "model/fifo.pth")
    for config in (None, "shapes"):
        with pytest.raises(
            ValueError, match=r"fifo\.pth' is .*a pipe, a socket or a device; pass a regular file or a folder"
        ):
            load_pretrained(tmp_path / "model/fifo.pth", config)


# --- folders


def test_a_folder_gives_the_model_back(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = load_pretrained(saved)
    assert_same(loaded, make())
    assert loaded.config == variant("tiny")
    assert {name for name, value in loaded.named_parameters() if value.requires_grad} == {
        name for name, value in make().named_parameters() if value.requires_grad
    }
    assert_same(load_pretrained(saved / "model.safetensors"), loaded)


@pytest.mark.skipif(os.name != "posix", reason="permissions of this kind")
def test_a_folder_can_be_read_by_whom_the_user_lets(saved: Path) -> None:
    for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE):
        (beside := saved / "beside").touch()
        assert (saved / name).stat().st_mode == beside.stat().st_mode, name
        beside.unlink()


def test_half_precision_halves_the_file(saved: Path, tmp_path: Path) -> None:
    half = save_pretrained(make(), tmp_path / "half", half=True)
    assert {value.dtype for value in load_file(half / "model.safetensors").values()} == {torch.float16}
    whole_size, half_size = ((each / "model.safetensors").stat().st_size for each in (saved, half))
    assert half_size < 0.52 * whole_size
    loaded = load_pretrained(half)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert_same(loaded, make(), atol=1e-3, rtol=1e-3)


def test_the_config_has_every_field_and_no_path(saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    assert content["model"] == json.loads(json.dumps(dataclasses.asdict(variant("tiny"))))
    assert read_config(saved) == describe(make())
    assert "library_name: san" in (saved / "README.md").read_text()


def test_the_folder_needs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on a CLIP file with a vocabulary of its own: the folder holds all of it, and no trace of the path."""
    shapes = load_clip("shapes", "shapes")
    assert shapes.state_dict is not None
    weights = {key: value * 0.5 if value.ndim > 1 else value for key, value in shapes.state_dict.items()}
    ids = json.loads(_header(CLIP_FILE)["token_ids"])
    moved = [ids[0] + 1, *ids[1:]]  # another word instead of one
    save_clip_file(tmp_path / "private" / "clip.safetensors", weights, shapes.arch, token_ids=moved)
    config = variant("shapes", pretrained=str(tmp_path / "private" / "clip.safetensors"))
    model = build_san(config)
    expected = model.text_classifier.embed(["red star", "blue ring"])
    folder = save_pretrained(model, tmp_path / "model")
    shutil.rmtree(tmp_path / "private")
    assert "private" not in "".join(path.read_text() for path in (folder / "config.json", folder / "README.md"))
    loaded = load_pretrained(folder)
    assert_same(loaded, model)
    torch.testing.assert_close(loaded.text_classifier.embed(["red star", "blue ring"]), expected)
    assert read_config(folder).clip_token_ids == tuple(moved)
    assert loaded.config.clip.pretrained == "clip.safetensors"


@pytest.mark.parametrize(
    ("pretrained", "public"),
    [
        (None, None), ("openai", "openai"), ("shapes", "shapes"), ("openai:/home/ursula/clip.pt", "openai"),
        ("/home/ursula/clip.pt", "clip.pt"), ("ursula/clip.pt", "clip.pt"), ("~/clip.pt", "clip.pt"),
        ("C:\\ursula\\clip.pt", "clip.pt"), ("C:/ursula/clip.pt", "clip.pt"), ("/ursula/a:b/clip.pt", "clip.pt"),
        ("laion2b_s34b_b88k:clip.safetensors", "laion2b_s34b_b88k"),
    ],
)  # fmt: skip
def test_no_folder_of_clip_weights_is_published(
    pretrained: str | None, public: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the file no longer exists."""
    model = make()
    config = replace(model.config, clip=replace(model.config.clip, pretrained=pretrained))
    monkeypatch.setattr(model, "config", config)  # the model is every test's
    assert describe(model).model.clip.pretrained == public
    save_slim(model, tmp_path / "slim.pth")
    folder = save_pretrained(model, tmp_path / "model")
    for path in (tmp_path / "slim.pth", folder / CONFIG_FILE, folder / CARD_FILE, folder / WEIGHTS_FILE):
        assert b"ursula" not in path.read_bytes()


def _header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_a_tag_of_open_clip_is_not_downloaded(folder: Path) -> None:
    change(folder, lambda content: content["model"]["clip"].update(pretrained="openai"))
    loaded = load_pretrained(folder)
    assert loaded.config.clip.pretrained == "openai"
    assert_same(loaded, make())


def change(folder: Path, edit: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    edit(content)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c["model"].update(siz_divisibility=1),
            r"unknown field 'model.siz_divisibility'; did you mean 'size_",
        ),
        (lambda c: c["model"]["clip"].update(run="code"), r"unknown field 'model.clip.run'"),
        (lambda c: c["model"]["head"].pop("mlp_channels"), r"missing fields model.head.mlp_channels"),
        (lambda c: c.pop("clip_arch"), r"missing fields clip_arch"),
        (lambda c: c["model"]["side_adapter"].update(depth="8"), r"model.side_adapter.depth is '8'; give int"),
        (lambda c: c["model"]["side_adapter"].update(depth=True), r"model.side_adapter.depth is True; give int"),
        (lambda c: c["model"]["side_adapter"].update(fusion=[[0, 0, 0]]), r"model.side_adapter.fusion is \[0, 0, 0\]"),
        (
            lambda c: c["model"]["attn_bias"].update(pooling="median"),
            r"attn_bias.pooling is 'median'; set it to one of max, average",
        ),
        (lambda c: c.update(model=[]), r"model. is \[\]; give an object"),
        (lambda c: c.update(model_type="bert"), r"has model_type 'bert', not 'san'"),
        (lambda c: c.update(format_version=4), "has format 4, written by SAN '0.1.0', but this version"),
        (
            lambda c: c["model"]["head"].update(mlp_num_layers=10**8),
            "head.mlp_num_layers is 100000000; set it within 1..64",
        ),
        (
            lambda c: c["model"]["side_adapter"].update(mlp_ratio=1e300),
            "side_adapter.mlp_ratio is 1e.300; set it above 0 and at most",
        ),
        (
            lambda c: c["clip_arch"]["vision"].update(depth=10**9),
            "clip_arch.vision.depth is 1000000000; set it within",
        ),
        (lambda c: c["clip_arch"]["text"].update(vocab_size=100), "vocab_size is 100, but the tokenizer has 49408 ids"),
        (lambda c: c["clip_arch"].update(std=[1, 1, float("nan")]), r"clip_arch.std is nan; give float"),
        (
            lambda c: c.update(clip_token_ids=[-1, 49408]),
            r"\(clip_token_ids\) are \(-1, 49408\)",
        ),
        (lambda c: c["model"]["clip"].update(templates=["a {} {}"]), r"clip.templates holds 'a {} {}'"),
    ],
)
def test_the_config_is_read_strictly(folder: Path, edit: Any, message: str) -> None:
    change(folder, edit)
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "9" * 5000, "{} " * (2 << 20)])
def test_a_config_that_is_no_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json' is not valid JSON \(") as caught:
        load_pretrained(folder)
    assert len(str(caught.value)) < 500


def test_no_memory_is_taken_for_a_model_that_the_weights_are_not_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sizes are within their ranges, and together 100 billion parameters."""
    large = {"embed_dim": 8192, "depth": 128, "num_heads": 64, "supervised_blocks": [128], "mlp_ratio": 16}
    change(folder, lambda content: content["model"]["side_adapter"].update(large))
    monkeypatch.setattr("san.hub.folder.build_san", lambda *args, **given: pytest.fail("the model was built"))
    with pytest.raises(ValueError, match=r"model.safetensors' does not fit this model.*tensors differ"):
        load_pretrained(folder)


def test_older_configs_are_read(folder: Path) -> None:
    """A new field with a default may be missing; fields that every file has had may not, see above."""

    @dataclasses.dataclass(frozen=True)
    class Later(HeadConfig):
        new: int = 5

    content = json.loads((folder / "config.json").read_text())
    assert read_record(Later, content["model"]["head"]) == Later(32, 32, 3, new=5)
    change(folder, lambda content: [content.pop(name) for name in ("format_version", "architecture")])
    assert read_config(folder).format_version == 1
    assert_same(load_pretrained(folder), make())


# --- models with custom parts


class OwnHead(MaskHead):
    def forward(self, features: Any) -> Any:
        logits, queries = super().forward(features)
        return -logits, queries


class OwnModel(SANModel):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.mask_head = OwnHead(self.config.head, self.config.side_adapter.embed_dim)


def patched(*args: Any) -> SANModel:
    model = SANModel(*args)
    model.mask_head.forward = MethodType(OwnHead.forward, model.mask_head)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("model_class", "parts"),
    [
        (OwnModel, r"the model of tests.test_hub.OwnModel, mask_head of tests.test_hub.OwnHead"),
        (patched, r"mask_head.forward of tests.test_hub.OwnHead.forward"),
    ],
)
def test_a_model_with_own_parts_does_not_come_back_as_another(model_class: Any, parts: str, tmp_path: Path) -> None:
    model = build_san(variant("tiny"), model_class=model_class)
    folder = save_pretrained(model, tmp_path / "own")
    with pytest.raises(ValueError, match=rf"config.json' describes .* custom parts: {parts}\. Import the class"):
        load_pretrained(folder)
    with pytest.raises(ValueError, match=rf"was saved with {parts}, but model_class builds a model with"):
        load_pretrained(folder, model_class=lambda *args: SANModel(*args))
    loaded = load_pretrained(folder, model_class=model_class)
    assert type(loaded) is type(model)
    assert_same(loaded, model)
    assert describe(loaded) == describe(model)


def test_a_class_that_has_moved_is_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(folder, lambda content: content.update(architecture=[["", "old.place.OwnModel"]]))

    class Moved(SANModel):
        pass

    assert type(load_pretrained(folder, model_class=Moved)) is Moved
    assert "was saved with the model of old.place.OwnModel" in caplog.text
    assert "old" not in sys.modules


@pytest.mark.slow
def test_a_compiled_model_is_a_plain_one() -> None:
    model = build_san(variant("tiny"))
    model.image_side.compile()
    assert describe(model).architecture == ()


def test_what_was_loaded_can_be_saved_again(tmp_path: Path) -> None:
    """Also with the small vocabulary of a CLIP whose file does not exist."""
    model = load_pretrained(save_pretrained(load_pretrained("shapes"), tmp_path / "a"))
    assert_same(load_pretrained(save_pretrained(model, tmp_path / "b")), model)


def test_damaged_folders(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in tensors.items() if "query_embed" not in key}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors.*side_adapter.query_embed: missing"):
        load_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(ValueError, match=r"model.safetensors.* cannot be read as a weights file"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json.* is not valid JSON"):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json; pass a folder written by save_pretrained"):
        load_pretrained(folder)


class Refused(TorchFunctionMode):
    """Functions that no tensor with values may go through meanwhile."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.__name__ not in self.names or args[0].is_meta, f"{func.__name__} was called"
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells what is mapped")
@pytest.mark.parametrize("form", ["folder", "published", "half"])
def test_weights_stay_in_their_file(form: str, folder: Path, tmp_path: Path) -> None:
    """None is drawn, and none copied but where single precision is made of half."""
    published = tmp_path / "model.pth"
    state = to_published(make().state_dict())
    torch.save({key: value.half() if form == "half" else value for key, value in state.items()}, published)
    with Refused("uniform_", "normal_", "copy_"):
        model = load_pretrained(folder) if form == "folder" else load_pretrained(published, "tiny")
    weights = folder / WEIGHTS_FILE if form == "folder" else published
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(weights))]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    mapped = [any(low <= each.data_ptr() < high for low, high in ranges) for each in model.parameters()]
    assert not any(mapped) if form == "half" else all(mapped)
    trained = {name for name, value in make().named_parameters() if value.requires_grad}
    assert {name for name, value in model.named_parameters() if value.requires_grad} == trained
    assert model.has_clip_weights
    if form != "half":
        assert_same(model, make())
    loose = [each for part in model.modules() for each in vars(part).values() if isinstance(each, torch.Tensor)]
    assert not any(each.is_meta for each in (*model.parameters(), *model.buffers(), *loose))
    save_pretrained(model, folder)  # over its own file
    assert_same(load_pretrained(folder), model)


def test_weights_that_share_memory_are_told_apart(tmp_path: Path) -> None:
    """Training one would change the other."""
    state = dict(make().state_dict())
    norm = "deep_clip.ln_post"
    state[f"{norm}.bias"] = state[f"{norm}.weight"]
    torch.save(state, tmp_path / "model.pth")
    loaded = dict(load_pretrained(tmp_path / "model.pth", "tiny").named_parameters())
    assert torch.equal(loaded[f"{norm}.bias"], loaded[f"{norm}.weight"])
    assert loaded[f"{norm}.bias"].data_ptr() != loaded[f"{norm}.weight"].data_ptr()


class SummedHead(AttentionBiasHead):
    """Reads a value that it has drawn."""

    def __init__(self, options: Any, config: Any) -> None:
        super().__init__(options, config)
        self.drawn_sum = float(next(self.parameters()).detach().sum())


def test_parts_of_others_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BIAS_HEADS._entries, "summed", SummedHead)
    model = build_san(replace(variant("tiny"), bias_head=PartConfig("summed")))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert_same(load_pretrained(tmp_path / "model.pth", model.config), model)


def test_saving_replaces_weights_and_keeps_your_words(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    save_pretrained(make(1), folder)
    assert_same(load_pretrained(folder), make(1))
    assert (folder / "README.md").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(ValueError, match="is a file; pass a folder to save_pretrained"):
        save_pretrained(make(), folder / "README.md")


def test_a_full_disk_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def fail(tensors: object, path: Path, **kwargs: object) -> None:
        Path(path).write_bytes(b"half a f")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(make(1), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_same(load_pretrained(folder), make(0))


# --- files


def test_a_bare_file_has_the_tensors_of_a_variant_or_needs_its_config(tmp_path: Path) -> None:
    model = make()
    torch.save({"model": to_published(model.state_dict())}, tmp_path / "a.pth")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "b.safetensors")
    save_slim(model, tmp_path / "c.pth")
    torch.save({"model": model.state_dict() | {"more": torch.zeros(1)}}, tmp_path / "d.pth")
    with pytest.raises(
        ValueError, match=r"d.pth' has no configuration.*of no known model; pass config: one of vit_b16"
    ):
        load_pretrained(tmp_path / "d.pth")
    for name in ("a.pth", "b.safetensors"):
        assert_same(load_pretrained(tmp_path / name, "tiny"), model)
        assert_same(load_pretrained(str(tmp_path / name), variant("tiny")), model)
        assert_same(load_pretrained(tmp_path / name), model)  # recognised by its tensors
        with pytest.raises(ValueError, match=rf"{name}': .*does not fit this model"):
            load_pretrained(tmp_path / name, "shapes")
    with pytest.raises(ValueError, match=r"c.pth': .*trained with the frozen CLIP 'tiny None'"):  # random weights
        load_pretrained(tmp_path / "c.pth", "tiny")


def test_a_config_is_refused_where_the_model_is_known(saved: Path) -> None:
    for source in ("shapes", saved):
        with pytest.raises(ValueError, match="has its own configuration; omit config"):
            load_pretrained(source, "tiny")


def test_a_published_file_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": to_published(make().state_dict())}, tmp_path / "san_vit_b_16.pth")
    tiny = {"san_vit_b_16": replace(MODELS["san_vit_b_16"], variant="tiny")}
    monkeypatch.setattr("san.hub.loading.MODELS", MODELS | tiny)
    assert_same(load_pretrained(tmp_path / "san_vit_b_16.pth"), make())
    assert_same(load_pretrained("san_vit_b_16", cache_dir=tmp_path), make())


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.mark), "w"))


def test_no_file_runs_code(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb is a dud"
    mark.unlink()
    torch.save({"model": Bomb(mark)}, tmp_path / "new.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"model": Bomb(mark)}))
    shutil.copy(tmp_path / "new.pth", tmp_path / "disguised.safetensors")
    for name in ("new.pth", "old.pth", "disguised.safetensors"):
        with pytest.raises(ValueError, match=name):
            load_pretrained(tmp_path / name, "tiny")
    (folder / "model.safetensors").unlink()
    shutil.copy(tmp_path / "new.pth", folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors \(weights there: pytorch_model.bin\)"):
        load_pretrained(folder)
    assert not mark.exists()


# --- the hub, without a network


@pytest.fixture
def hub_cache(saved: Path, tmp_path: Path) -> Path:
    """huggingface_hub's cache as a download leaves it: two repositories, one commit each."""
    for repo, files in (("models--me--tiny", saved.iterdir()), ("models--Mendel192--san", [])):
        snapshot = tmp_path / "hub" / repo / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (tmp_path / "hub" / repo / "refs").mkdir()
        for ref in ("main", "v1"):
            (tmp_path / "hub" / repo / "refs" / ref).write_text(COMMIT)
        for file in files:
            shutil.copy(file, snapshot)
    (snapshot / "san_vit_b_16.pth").write_bytes(b"as if")
    return tmp_path / "hub"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
@pytest.mark.parametrize("local_files_only", [False, True])
def test_the_cache_serves_without_a_network(hub_cache: Path, revision: str | None, local_files_only: bool) -> None:
    given: dict[str, Any] = {"cache_dir": hub_cache, "revision": revision, "local_files_only": local_files_only}
    assert_same(load_pretrained("me/tiny", **given), make())
    found = find_known(MODELS["san_vit_b_16"], **given)
    assert found == hub_cache / "models--Mendel192--san" / "snapshots" / COMMIT / "san_vit_b_16.pth"
    with pytest.raises(FileNotFoundError, match=r"san_vit_large_14.pth of Mendel192/san is not on this machine"):
        find_known(MODELS["san_vit_large_14"], **given)


def test_hf_home_and_hf_hub_offline_are_obeyed(hub_cache: Path) -> None:
    """They are read by huggingface_hub when it is imported, so in a process of its own."""
    code = (
        "from san.hub import MODELS, find_here, load_pretrained\n"
        "print(load_pretrained('me/tiny').config.clip.name, find_here(MODELS['san_vit_b_16']).name)\n"
        "load_pretrained('me/other')"
    )
    environment = os.environ | {"HF_HOME": str(hub_cache.parent), "HF_HUB_OFFLINE": "1", "HOME": str(hub_cache.parent)}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["tiny", "san_vit_b_16.pth"], done.stderr
    assert "config.json of me/other is not on this machine and the network is off" in done.stderr


@pytest.mark.usefixtures("no_network")
def test_without_a_network_the_message_leads_to_a_working_model(saved: Path, tmp_path: Path) -> None:
    """A file downloaded and stored as the message says is then found."""
    with pytest.raises(FileNotFoundError) as caught:
        find_known(MODELS["san_vit_b_16"], cache_dir=tmp_path)
    message = str(caught.value)
    assert "download https://huggingface.co/Mendel192/san/resolve/main/san_vit_b_16.pth elsewhere" in message
    assert f"put it into {tmp_path} " in message
    assert "\n" not in message
    (tmp_path / "san_vit_b_16.pth").write_bytes(b"as if")
    assert find_known(MODELS["san_vit_b_16"], cache_dir=tmp_path) == tmp_path / "san_vit_b_16.pth"
    assert find_here(MODELS["san_vit_b_16"], cache_dir=tmp_path) == tmp_path / "san_vit_b_16.pth"
    with pytest.raises(FileNotFoundError) as caught:
        load_pretrained("me/tiny", cache_dir=tmp_path)
    assert "https://huggingface.co/me/tiny/resolve/main/config.json" in str(caught.value)
    assert f"put it into {tmp_path / 'me--tiny'} " in str(caught.value)
    (tmp_path / "me--tiny").mkdir()
    shutil.copy(saved / "config.json", tmp_path / "me--tiny")
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        load_pretrained("me/tiny", cache_dir=tmp_path)
    shutil.copy(saved / "model.safetensors", tmp_path / "me--tiny")
    assert_same(load_pretrained("me/tiny", cache_dir=tmp_path), make())


@pytest.mark.usefixtures("no_network")
def test_the_users_own_folder_is_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "san" / "models"
    with pytest.raises(FileNotFoundError, match=f"put it into {folder} "):
        find_known(MODELS["san_vit_large_14"])
    folder.mkdir(parents=True)
    (folder / "san_vit_large_14.pth").touch()
    assert find_known(MODELS["san_vit_large_14"]) == folder / "san_vit_large_14.pth"


# --- the hub, with one


class Hub(BaseHTTPRequestHandler):
    """A fake hub with what a download needs."""

    def __init__(self, folder: Path, asked: list[str], *args: Any) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.asked.append(self.path)
        owner, name, _, revision, file = self.path.strip("/").split("/", 4)
        found = self.folder / file
        if (owner, name) != ("me", "tiny") or revision not in ("main", COMMIT) or not found.is_file():
            code = "RepoNotFound" if name != "tiny" else "EntryNotFound" if revision == "main" else "RevisionNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = found.read_bytes()
        self.send_response(200)
        for key, value in (("X-Repo-Commit", COMMIT), ("ETag", f'"{file}"'), ("Content-Length", str(len(content)))):
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A hub on this machine that has me/tiny, and the addresses it was asked for."""
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, saved, asked)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in ("constants", "file_download"):  # older releases copy it
            monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setattr(remote_module, "getproxies", dict)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield SimpleNamespace(asked=asked, stop=server.shutdown, close=server.server_close)
        server.shutdown()
        thread.join()


def test_a_model_is_downloaded_once(hub: SimpleNamespace, tmp_path: Path) -> None:
    assert_same(load_pretrained("me/tiny", cache_dir=tmp_path), make())
    assert f"/me/tiny/resolve/{COMMIT}/model.safetensors" in hub.asked, "weights of another commit than the config's"
    assert not [path for path in hub.asked if "README" in path or ".bin" in path]
    count = len(hub.asked)
    assert_same(load_pretrained("me/tiny", cache_dir=tmp_path, local_files_only=True), make())
    assert len(hub.asked) == count
    hub.stop(), hub.close()
    assert_same(load_pretrained("me/tiny", cache_dir=tmp_path), make())  # the hub is down, the cache is not


def test_cache_dir_is_for_the_weights_of_clip_too(
    hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slim file needs its CLIP's weights; the file that this hub has instead is found, and is not a CLIP."""
    monkeypatch.setattr(open_clip_adapter, "tag_record", lambda name, tag: {"hf_hub": "me/tiny/model.safetensors"})
    save_slim(make(), tmp_path / "slim.pth")
    given: dict[str, Any] = {"config": variant("vit_b16", pretrained="some_tag"), "cache_dir": tmp_path / "cache"}
    for offline in (False, True):
        with pytest.raises(ValueError, match=rf"{tmp_path}/cache/models--me--tiny/.* contains no class-token ViT CLIP"):
            load_pretrained(tmp_path / "slim.pth", local_files_only=offline, **given)
        assert hub.asked, "nothing was downloaded"
        count = len(hub.asked)
    given["cache_dir"] = tmp_path / "other"
    with pytest.raises(FileNotFoundError, match=rf"network is off.*keep it in the cache {tmp_path}/other"):
        load_pretrained(tmp_path / "slim.pth", local_files_only=True, **given)
    assert len(hub.asked) == count


def offline_entries(repo: Path, folder: Path) -> dict[str, Callable[[], object]]:
    """Code that needs weights that are not on this machine, without the network."""
    from san.cli.main import main
    from san.d2.api import build_model
    from san.d2.config.keys import load_config

    Image.new("RGB", (64, 64)).save(folder / "a.png")
    save_slim(make(), folder / "slim.pth")
    configuration = str(repo / "configs" / "san_clip_vit_b16_coco.yaml")
    predict = ["predict", str(folder / "a.png"), "--vocab", "cat", "--out", str(folder / "out"), "--offline"]
    cpu = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder / "out")]
    return {
        "Predictor": lambda: Predictor.from_pretrained("san_vit_b_16", local_files_only=True),
        "a repository": lambda: load_pretrained("me/tiny", local_files_only=True, cache_dir=folder / "cache"),
        "a slim file": lambda: load_pretrained(folder / "slim.pth", "vit_b16", local_files_only=True),
        "san predict": lambda: main([*predict, "--model", "san_vit_b_16"]),
        "san predict, slim": lambda: main([*predict, "--model", str(folder / "slim.pth"), "--config", "vit_b16"]),
        "san demo": lambda: main(["demo", "--offline", "--model", "me/tiny", "--cache-dir", str(folder / "cache")]),
        "san models": lambda: main(["models"]),
        "san eval": lambda: main(["eval", "--config-file", configuration, "--weights", "san_vit_b_16", *cpu]),
        "training": lambda: build_model(load_config(configuration, cpu)),
    }


def test_offline_no_socket_is_opened(
    repo: Path,
    tmp_path: Path,
    hub: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened: list[str] = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    class Guarded(socket.socket):
        def __init__(self, family: int = -1, *args: Any, **given: Any) -> None:
            opened.append(f"{name}: a socket")
            super().__init__(family, *args, **given)

    def ask(*args: Any, **given: Any) -> Any:
        opened.append(f"{name}: the address of {args[0]}")
        raise socket.gaierror("Name or service not known")

    entries = offline_entries(repo, tmp_path)
    monkeypatch.setattr(socket, "socket", Guarded)
    monkeypatch.setattr(socket, "getaddrinfo", ask)
    for name, entry in entries.items():
        # these have no option of their own
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", name in ("san eval", "training"))
        try:
            assert entry() == (0 if name == "san models" else 1), name
            message = capsys.readouterr().err
        except FileNotFoundError as error:
            message = str(error)
        assert name == "san models" or "network is off" in message, name
    assert opened == [] and hub.asked == []
    name = "asking"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(open_clip_adapter, "getproxies", dict)
    with pytest.raises(FileNotFoundError, match="cannot be"):
        load_pretrained(tmp_path / "slim.pth", "vit_b16")
    assert opened, "the guard sees nothing"


@pytest.mark.usefixtures("no_network")
def test_without_a_home_folder_there_is_no_cache_of_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.setattr(text_cache, "DEFAULT_FOLDER", "~/.cache/san/text")
    monkeypatch.chdir(tmp_path)
    assert find_here(MODELS["san_vit_b_16"]) is None
    with pytest.raises(FileNotFoundError, match=r"no home folder.*put it into a folder that you pass as cache_dir"):
        load_pretrained("san_vit_b_16")
    with pytest.raises(FileNotFoundError, match="no home folder to keep them in"):
        load_clip("ViT-B-16", "openai")
    assert Predictor(make()).text_cache is None
    with pytest.raises(ValueError, match="the text cache's folder is '~/x'"):
        text_cache.resolve_folder("~/x")
    assert redact_home("in /root and ~") == "in /root and ~"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("me/gone", None, r"repository 'me/gone' is not found on the hub.*hf auth login"),
        ("me/tiny", "v9", r"me/tiny has no revision 'v9'"),
        ("me/..tiny", None, r"'me/..tiny' is not a repository name of the hub"),
        ("Mendel192/san", None, r"'Mendel192/san' contains several models; pass one of san_vit_b_16, san_vit_large_14"),
    ],
)
def test_what_the_hub_refuses(
    hub: SimpleNamespace, tmp_path: Path, repo: str, revision: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_pretrained(repo, revision=revision, cache_dir=tmp_path)


def test_a_repository_of_something_else(hub: SimpleNamespace, saved: Path, tmp_path: Path) -> None:
    (saved / "config.json").rename(tmp_path / "config.json")
    try:
        with pytest.raises(ValueError, match=r"me/tiny has no file 'config.json'; a model has config.json and"):
            load_pretrained("me/tiny", cache_dir=tmp_path)
    finally:
        (tmp_path / "config.json").rename(saved / "config.json")


class FakeApi:
    """huggingface_hub.HfApi, remembering what it was asked."""

    calls: list[tuple[str, dict[str, Any]]]
    error: Exception | None = None

    def __init__(self, token: str | None = None) -> None:
        type(self).calls = [("token", {"token": token})]

    def create_repo(self, **given: Any) -> SimpleNamespace:
        self.calls.append(("create_repo", given))
        if self.error:
            raise self.error
        return SimpleNamespace(repo_id=given["repo_id"])

    def create_branch(self, **given: Any) -> None:
        self.calls.append(("create_branch", given))

    def upload_folder(self, **given: Any) -> SimpleNamespace:
        content = {path.name: path.read_bytes() for path in Path(given["folder_path"]).iterdir()}
        self.calls.append(("upload_folder", given | {"content": content}))
        return SimpleNamespace(commit_url=f"https://huggingface.co/{given['repo_id']}/commit/{COMMIT}")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "error", None)
    monkeypatch.setattr(FakeApi, "calls", [], raising=False)
    return FakeApi


def test_push_a_model(api: type[FakeApi], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    address = push_to_hub(make(), "me/tiny", private=True, token=TOKEN, half=True, commit_message="First")
    assert address == f"https://huggingface.co/me/tiny/commit/{COMMIT}"
    (_, token), (first, created), (second, uploaded) = api.calls
    assert token == {"token": TOKEN}
    assert (first, second) == ("create_repo", "upload_folder")
    assert created == {"repo_id": "me/tiny", "repo_type": "model", "private": True, "exist_ok": True}
    assert uploaded["commit_message"] == "First"
    assert sorted(uploaded["allow_patterns"]) == ["README.md", "config.json", "model.safetensors"]
    for name, content in uploaded["content"].items():
        (tmp_path / name).write_bytes(content)
    assert_same(load_pretrained(tmp_path), make(), atol=1e-3, rtol=1e-3)
    assert TOKEN not in caplog.text


def test_push_a_folder_to_a_branch(api: type[FakeApi], folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    push_to_hub(folder, "me/tiny", branch="v2")
    assert [name for name, _ in api.calls] == ["token", "create_repo", "create_branch", "upload_folder"]
    assert api.calls[-1][1]["revision"] == "v2"
    assert api.calls[-1][1]["content"]["README.md"] == b"mine"


def test_no_local_path_is_pushed(api: type[FakeApi], folder: Path) -> None:
    """A folder of an earlier version."""
    change(folder, lambda content: content["model"]["clip"].update(pretrained="/home/ursula/clip.pt"))
    with pytest.raises(ValueError, match=r"would publish the local path '/home/ursula/clip.pt'.*by 'clip.pt' there"):
        push_to_hub(folder, "me/tiny")
    assert api.calls == []


def test_nothing_broken_is_pushed(api: type[FakeApi], folder: Path) -> None:
    change(folder, lambda content: content["model"].pop("head"))
    with pytest.raises(ValueError, match="missing fields model.head"):
        push_to_hub(folder, "me/tiny")
    with pytest.raises(ValueError, match="half and dtype need a model"):
        push_to_hub(folder, "me/tiny", half=True)
    assert api.calls == []


@pytest.mark.parametrize("kind", [OSError, ValueError, errors.HFValidationError])
def test_a_refused_push_never_shows_the_token(
    api: type[FakeApi], folder: Path, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeApi, "error", kind(f"401 for Bearer {TOKEN}\nUnauthorized"))
    with pytest.raises(ValueError, match=r"the hub refused 'me/tiny' \(401 for Bearer \*\*\* Unauthorized\)") as caught:
        push_to_hub(folder, "me/tiny", token=TOKEN)
    assert caught.value.__suppress_context__
