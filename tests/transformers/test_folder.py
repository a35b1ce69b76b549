"""`san convert --to transformers`: AutoModel and AutoProcessor give a Predictor's results."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from san.cli.main import main
from san.hub import SHAPES_CHECKPOINT, load_pretrained
from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import variant
from san.model.parts import describe_parts
from san.registry import PartConfig
from san.shapes.render import render
from san.shapes.world import scene_at

transformers = pytest.importorskip("transformers")
from transformers.dynamic_module_utils import get_class_from_dynamic_module  # noqa: E402

WORDS = {"star": {"synonyms": ["white star", "red star"]}, "bar": "a picture of a black bar.", "blue ring": None,
         "striped ground": None, "plain ground": None}  # fmt: skip
PICTURES = render([scene_at(seed=5, index=index) for index in range(2)])[0]


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No network, and no module in the user's cache of transformers."""
    import transformers.dynamic_module_utils as dynamic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr(sys, "path", [*sys.path])
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed model, converted."""
    out = tmp_path_factory.mktemp("out") / "san shapes"
    assert main(["convert", str(SHAPES_CHECKPOINT), "--to", "transformers", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load(folder)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_pretrained("shapes", text_cache=None)


def load(folder: Path, **options: Any) -> tuple[Any, Any]:
    """Model and processor."""
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, **options)
    return model.eval(), transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@torch.no_grad()
def labels_of(loaded: tuple[Any, Any], pictures: Any, words: Any = WORDS, **options: Any) -> list[np.ndarray]:
    model, processor = loaded
    outputs = model(**processor(images=pictures, text=words))
    sizes = [each.shape[:2] for each in pictures]
    found = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes, **options)
    return [each.numpy() for each in found]


def test_the_files(folder: Path) -> None:
    assert {each.name for each in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "modeling_san.py", "processor_config.json",
    }  # fmt: skip
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]
    assert len({each.stat().st_mode for each in folder.iterdir()}) == 1  # others may read what the user lets them
    assert "library_name: transformers" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["SANForSegmentation"]


def test_results_are_those_of_a_predictor(loaded: tuple[Any, Any], predictor: Predictor) -> None:
    for options in ({}, {"threshold": 0.6}, {"none_of_these": True}):
        expected = predictor.predict_batch(list(PICTURES), WORDS, **options)
        for found, wanted in zip(labels_of(loaded, list(PICTURES), **options), expected, strict=True):
            assert np.array_equal(found, wanted.labels)
    odd = PICTURES[0][:90, :77]
    assert np.array_equal(labels_of(loaded, [odd])[0], predictor.predict(odd, WORDS).labels)


def test_words_are_embedded_once(loaded: tuple[Any, Any], predictor: Predictor) -> None:
    model, processor = loaded
    with torch.no_grad():
        text = model.get_text_features(**processor(text=WORDS))
        kept = model(**processor(images=PICTURES[0]), text_embeds=text, output_logits=True)
        new = model(**processor(PICTURES[0], WORDS), return_dict=False)
    result = predictor.predict(PICTURES[0], WORDS)
    assert torch.equal(text, predictor.model.text_classifier.embed(result.vocabulary.classes))
    assert torch.equal(kept.class_queries_logits, new[0]) and torch.equal(kept.masks_queries_logits, new[1])
    assert torch.equal(new[2], text)
    assert kept.logits.shape == (1, 5, *kept.masks_queries_logits.shape[2:])


def test_images_of_several_sizes_are_padded(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    wide, tall = PICTURES[0][:64], PICTURES[1][:, :100]
    inputs = processor(images=[wide, tall], text="red star, plain ground")
    assert inputs["pixel_values"].shape[2:] == inputs["pixel_mask"].shape[1:]
    assert ((inputs["pixel_values"] == 0).all(dim=1) | inputs["pixel_mask"].bool()).all()
    with torch.no_grad():
        outputs = model(**inputs)
    inside = [tuple(size) for size in outputs.image_sizes.tolist()]
    assert inside == [(mask.any(dim=1).sum(), mask.any(dim=0).sum()) for mask in inputs["pixel_mask"]]
    assert [each.shape for each in processor.post_process_semantic_segmentation(outputs)] == inside
    alone = labels_of(loaded, [wide], "red star, plain ground")[0]
    together = processor.post_process_semantic_segmentation(outputs, [(64, 128), (128, 100)])[0].numpy()
    assert (alone == together).mean() > 0.95
    with pytest.raises(ValueError, match="there are 1 target_sizes for 2 images"):
        processor.post_process_semantic_segmentation(outputs, [(64, 128)])


def test_the_processors_of_transformers_read_the_outputs(loaded: tuple[Any, Any]) -> None:
    """They resize masks to 384 pixels first, so that edges differ."""
    model, processor = loaded
    with torch.no_grad():
        outputs = model(**processor(PICTURES[0], WORDS))
    theirs = transformers.Mask2FormerImageProcessor().post_process_semantic_segmentation(outputs, [(128, 128)])[0]
    ours = processor.post_process_semantic_segmentation(outputs, [(128, 128)])[0]
    assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
    assert (theirs == ours).float().mean() > 0.97


def test_a_round_trip_keeps_every_bit(loaded: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    for each in loaded:
        each.save_pretrained(tmp_path / "again")
    assert {each.name for each in folder.iterdir()} - {each.name for each in (tmp_path / "again").iterdir()} == {
        "README.md"
    }
    for name in ("model.safetensors", "modeling_san.py"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    again = load(tmp_path / "again")
    assert again[1].to_dict() == loaded[1].to_dict()
    assert again[0].config.san == loaded[0].config.san
    first, second = loaded[0].state_dict(), again[0].state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    trained = {name for name, value in load_pretrained("shapes").named_parameters() if value.requires_grad}
    assert {
        name.removeprefix("model.") for name, value in again[0].named_parameters() if value.requires_grad
    } == trained


def test_san_reads_the_folder(folder: Path) -> None:
    ours, theirs = load_pretrained(folder), load_pretrained("shapes")
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), atol=0, rtol=0)
    assert ours.config == describe_parts(theirs.config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(folder: Path, predictor: Predictor, dtype: torch.dtype, tmp_path: Path) -> None:
    model, processor = load(folder, dtype=dtype)
    assert {value.dtype for value in model.parameters()} == {dtype}
    wanted = predictor.predict_batch(list(PICTURES), WORDS)
    for found, each in zip(labels_of((model, processor), list(PICTURES)), wanted, strict=True):
        assert (found == each.labels).mean() > 0.97
    model.save_pretrained(tmp_path / "half")
    assert {value.dtype for value in load_file(tmp_path / "half/model.safetensors").values()} == {dtype}


def test_learnt_prompts_and_pixel_statistics_survive(tmp_path: Path) -> None:
    """Both are in tensors that no file has."""
    from san.transformers import save_transformers

    model = build_san(replace(variant("tiny"), prompts=PartConfig("learnt_context")))
    torch.nn.init.normal_(model.text_classifier.context_offset)
    save_transformers(model, tmp_path / "learnt")
    loaded, processor = load(tmp_path / "learnt")
    assert torch.equal(loaded.model.text_classifier.context_length, model.text_classifier.context_length)
    assert torch.equal(loaded.model.pixel_mean, model.pixel_mean)
    assert torch.equal(loaded.model.pixel_std, model.pixel_std)
    with torch.no_grad():
        found = loaded.get_text_features(**processor(text="cat|kitten, dog"))
    wanted = Predictor(model, text_cache=None).predict(PICTURES[0], "cat|kitten, dog").vocabulary.classes
    assert torch.equal(found, model.text_classifier.embed(wanted))


def test_the_snippets_of_the_page_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = Path(__file__).parents[2]
    page = (repo / "docs/checkpoints.md").read_text(encoding="utf-8")
    assert f"san convert {SHAPES_CHECKPOINT.relative_to(repo)} --to transformers --out san-shapes" in page
    shutil.copytree(folder, tmp_path / "san-shapes")
    monkeypatch.chdir(tmp_path)
    ours, hub = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    scope: dict[str, Any] = {}
    exec(ours, scope)
    assert scope["labels"].shape == (128, 128) and len(scope["labels"].unique()) > 1
    exec(hub.replace("/path/to/this/repository", str(repo)).replace('"san_vit_b_16"', '"shapes"'), scope)
    wanted = scope["predictor"].predict(scope["picture"], scope["names"]).labels
    assert np.array_equal(scope["labels"].numpy(), wanted)


@pytest.mark.slow  # eight seconds
def test_a_copy_works_in_a_fresh_process(folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "Büro #1" / "model 2.0")
    np.save(tmp_path / "picture.npy", PICTURES[0])
    script = (
        "import sys, numpy as np, torch\n"
        "from transformers import AutoModel, AutoProcessor\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "picture = np.load('picture.npy')\n"
        "with torch.no_grad(): outputs = model(**processor(images=picture, text='red star, plain ground'))\n"
        "np.save('labels.npy', processor.post_process_semantic_segmentation(outputs, [picture.shape[:2]])[0])\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", script, str(copied)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    wanted = predictor.predict(PICTURES[0], "red star, plain ground").labels
    assert np.array_equal(np.load(tmp_path / "labels.npy"), wanted)


def test_without_san_the_command_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "san.transformers", None)
    copied = shutil.copytree(folder, folder.parent / "other")  # a module of its own
    with pytest.raises(ImportError, match=r'needs SAN .*pip install "san-segmentation\[transformers\]>='):
        get_class_from_dynamic_module("modeling_san.SANForSegmentationConfig", str(copied))


def test_no_code_of_the_folder_is_needed(folder: Path, tmp_path: Path) -> None:
    import san.transformers as room

    copied = shutil.copytree(folder, tmp_path / "model")
    (copied / "modeling_san.py").unlink()
    assert type(transformers.AutoModel.from_pretrained(copied)) is room.SANForSegmentation
    assert type(transformers.AutoProcessor.from_pretrained(copied)) is room.SANProcessor


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(copied / "model.safetensors")
    name = next(iter(tensors))
    del tensors[name]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"weights do not fit.*missing {name}"):
        transformers.AutoModel.from_pretrained(copied, trust_remote_code=True)


def test_what_is_missing_is_named(loaded: tuple[Any, Any], folder: Path, tmp_path: Path, capsys: Any) -> None:
    from san.transformers import save_transformers

    model, processor = loaded
    with pytest.raises(ValueError, match="give images, text or both"):
        processor()
    with pytest.raises(ValueError, match="the list of images is empty"):
        processor(images=[])
    with pytest.raises(ValueError, match="give input_ids .* or text_embeds"):
        model(**processor(images=PICTURES[0]))
    with pytest.raises(ValueError, match="return_tensors is 'np'"):
        processor(text="cat", return_tensors="np")
    command = ["convert", str(SHAPES_CHECKPOINT), "--to", "transformers", "--out", str(tmp_path / "x")]
    assert main([*command, "--half"]) == 1
    assert "--to slim" in capsys.readouterr().err and not (tmp_path / "x").exists()
    rounded = Predictor.from_pretrained("shapes", dtype="bfloat16", text_cache=None).model
    with pytest.raises(ValueError, match="weights were rounded"):
        save_transformers(rounded, tmp_path / "x")
    (tmp_path / "taken").mkdir()
    assert main([*command[:-1], str(tmp_path / "taken")]) == 1
    assert "exists" in capsys.readouterr().err


def test_a_predictor_of_the_loaded_model(folder: Path, predictor: Predictor) -> None:
    model = load(folder)[0]
    found = Predictor(model.model, short_side=predictor.short_side, text_cache=None).predict(PICTURES[0], WORDS)
    assert np.array_equal(found.labels, predictor.predict(PICTURES[0], WORDS).labels)
