"""The numbers of the published implementation, for weights, images and texts anyone can draw again.

They come from tests/golden, or from the folder named by SAN_GOLDEN_DIR. Tolerance: ||ours - golden|| / ||golden|| below
1e-4 in float32 for every inner result and gradient; averaged losses within four standard errors of the difference.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from san.checkpoint import load_weights, trained_names
from san.clip.templates import load_templates
from san.d2.solver import SolverConfig, build_optimizer, poly_factor
from san.data.targets import classes_present
from san.data.transforms import resize_short_side
from san.evaluation.confusion import ConfusionMatrix
from san.evaluation.metrics import metrics
from san.losses import LossConfig, SetCriterion
from san.model.build import build_san
from san.model.config import SANConfig, variant
from san.model.names import PUBLISHED, to_published
from san.model.san import SANModel, SANOutput
from san.postprocess import Geometry, semantic_labels, semantic_scores
from san.vocabulary.label_sets import load_label_set

TOLERANCE = 1e-4
TINY_CASES = ("tiny_square", "tiny_wide", "tiny_batch")


@cache
def recipe(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_config(name: str) -> SANConfig:
    """The variant with untrained weights and the activation the golden models use."""
    config = variant(name, pretrained=None)
    if name == "tiny":
        return config
    return replace(config, clip=replace(config.clip, name=f"{config.clip.name}-quickgelu"))


def drawn_model(folder: Path, name: str) -> SANModel:
    """A model that holds the recipe's weights, loaded under their published names."""
    model = build_san(golden_config(name))
    keys = json.loads((folder / f"checkpoint_keys_{name}.json").read_text())
    draw = recipe(folder).weight
    drawn = {
        key: torch.from_numpy(np.asarray(draw(key, shape)))
        for key, shape in keys["state_dict"].items()
        if not key.endswith("attn_mask")
    }
    load_weights(model, drawn)
    return model


@pytest.fixture(scope="module")
def tiny(golden: Path) -> SANModel:
    return drawn_model(golden, "tiny")


def read_case(folder: Path, name: str) -> dict[str, Any]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        case = {key: file[key] for key in file.files}
    for key in ("items", "vocabulary"):
        if key in case:
            case[key] = json.loads(str(case[key]))
    return case


def batch_of(folder: Path, model: SANModel, items: list[Any]) -> torch.Tensor:
    """The images of a case, normalised, padded with zeros to a common multiple of the size divisibility."""
    images = [torch.from_numpy(recipe(folder).image(key, h, w)).float() for key, h, w, *_ in items]
    step = model.config.size_divisibility
    height, width = (-(-max(image.shape[axis] for image in images) // step) * step for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    for slot, image in zip(batch, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = (image - model.pixel_mean) / model.pixel_std
    return batch


def assert_close(ours: torch.Tensor, golden_value: Any, what: str) -> None:
    expected = torch.from_numpy(np.asarray(golden_value)).double()
    assert ours.shape == expected.shape, what
    error = float((ours.detach().double() - expected).norm() / expected.norm())
    assert error < TOLERANCE, f"{what}: relative error {error:.2e}"


def check_statistics(model: SANModel, images: torch.Tensor, case: dict[str, Any]) -> None:
    """Mean, standard deviation and largest magnitude of every shallow CLIP feature."""
    clip_images = F.interpolate(images, scale_factor=model.config.clip.input_scale, mode="bilinear")
    features = model.shallow_clip(clip_images)
    for kind, states in (("", features.patch_tokens), ("_cls_token", features.class_tokens)):
        assert f"clip_{len(states)}{kind}_stats" not in case
        for index, state in enumerate(states):
            ours = torch.stack([state.mean(), state.std(), state.abs().max()])
            assert_close(ours, case[f"clip_{index}{kind}_stats"], f"clip_{index}{kind}_stats")


def check_inference(folder: Path, model: SANModel, case: dict[str, Any]) -> None:
    model.eval()
    images = batch_of(folder, model, case["items"])
    with torch.no_grad():
        text = model.text_classifier.embed(case["vocabulary"])
        output: SANOutput = model(images, text)
        no_object = F.normalize(model.text_classifier.no_object_embed, dim=-1)
        scaled_text = torch.cat([text, no_object]) * model.text_classifier.logit_scale.exp()
        check_statistics(model, images, case)
    assert_close(scaled_text, case["text"], "text")
    assert_close(output.mask_logits, case["mask_preds"], "mask_preds")
    assert_close(output.sls_embed, case["mask_emb"], "mask_emb")
    assert_close(output.class_logits, case["mask_logits"], "mask_logits")
    if "attn_bias" in case:
        assert_close(output.attn_bias[:, 0], case["attn_bias"], "attn_bias")
    for index, (_, height, width, out_height, out_width) in enumerate(case["items"]):
        geometry = Geometry((images.shape[2], images.shape[3]), (height, width), (out_height, out_width))
        scores = semantic_scores(output.mask_logits[index], output.class_logits[index], geometry)
        labels = semantic_labels(output.mask_logits[index], output.class_logits[index], geometry)
        assert torch.equal(labels, scores.argmax(dim=0))
        if f"sem_seg_{index}" in case:
            assert_close(scores, case[f"sem_seg_{index}"], f"sem_seg_{index}")
        if f"sem_seg_{index}_every16" in case:
            assert_close(scores[:, ::16, ::16], case[f"sem_seg_{index}_every16"], f"sem_seg_{index}_every16")
        if f"labels_{index}" in case:
            same = (labels.numpy() == case[f"labels_{index}"]).mean()
            assert same > 0.9999, f"labels_{index}: {same:.6f} equal"  # exact ties and rounding decide the rest


@pytest.mark.parametrize("name", TINY_CASES)
def test_tiny_inference(golden: Path, tiny: SANModel, name: str) -> None:
    check_inference(golden, tiny, read_case(golden, name))


@pytest.mark.parametrize("name", ["vit_b16", pytest.param("vit_l14_336", marks=pytest.mark.slow)])
def test_full_size_inference(golden: Path, name: str) -> None:
    check_inference(golden, drawn_model(golden, name), read_case(golden, name))


def test_tiny_gradients(golden: Path, tiny: SANModel) -> None:
    case = read_case(golden, "tiny_gradients")
    tiny.train()
    tiny.zero_grad()
    output = tiny(batch_of(golden, tiny, case["items"]), tiny.text_classifier.embed(case["vocabulary"]))
    (earlier,) = output.aux
    results = [earlier.mask_logits, output.mask_logits, earlier.class_logits, output.class_logits]
    draw = recipe(golden).weight
    cotangents = [draw(f"cotangent/{index}", (1, *result.shape))[0] for index, result in enumerate(results)]
    objective = sum((t * torch.from_numpy(r)).sum() for t, r in zip(results, cotangents, strict=True))
    assert isinstance(objective, torch.Tensor)
    objective.backward()
    assert float(objective.detach()) == pytest.approx(float(case["objective"]), rel=TOLERANCE)
    gradients = {name: parameter.grad for name, parameter in tiny.named_parameters() if parameter.grad is not None}
    assert set(gradients) == trained_names(tiny)
    expected = {key.removeprefix("grad/"): value for key, value in case.items() if key.startswith("grad/")}
    assert {PUBLISHED.name_of(name) for name in gradients} == set(expected)
    for name, value in expected.items():
        gradient = gradients[PUBLISHED.own_name(name)].double().flatten()
        assert_close(torch.cat([gradient.norm()[None], gradient[:8]]), value, f"gradient of {name}")


def test_tiny_losses(golden: Path, tiny: SANModel) -> None:
    """Averages over draws of the random points; both sides are estimates, so their difference has a standard error."""
    case = read_case(golden, "tiny_losses")
    names = load_label_set("coco_stuff_171").classes
    tiny.train()
    images = [recipe(golden).image(key, height, width) for key, height, width, *_ in case["items"]]
    targets = []
    for image in images:
        label_map = (image[0].astype(np.int64) // 52) * 30
        label_map[: len(label_map) // 8] = 255
        labels = classes_present(torch.from_numpy(label_map), 255, len(names))
        targets.append({"labels": labels, "masks": torch.from_numpy(label_map) == labels[:, None, None]})
    with torch.no_grad():
        output = tiny(batch_of(golden, tiny, case["items"]), tiny.text_classifier.embed(names))
    criterion = SetCriterion(LossConfig(num_points=recipe(golden).TINY_SAN["train_num_points"]))
    torch.manual_seed(0)
    draws = [criterion(output.as_dict(), targets) for _ in range(256)]
    for key, mean, error in zip(case["keys"], case["mean"], case["sem"], strict=True):
        values = torch.tensor([float(draw[str(key)]) for draw in draws], dtype=torch.float64)
        allowed = 4 * float(torch.hypot(values.std() / len(values) ** 0.5, torch.tensor(error)))
        assert float(values.mean()) == pytest.approx(mean, abs=allowed), key


@pytest.mark.parametrize("name", ["tiny", "vit_b16", "vit_l14_336"])
def test_checkpoint_keys(golden: Path, name: str) -> None:
    """Names, shapes and what is trained; on the meta device, so that nothing is drawn."""
    keys = json.loads((golden / f"checkpoint_keys_{name}.json").read_text())
    with torch.device("meta"):
        model = build_san(golden_config(name))
    published = {key: list(value.shape) for key, value in to_published(model.state_dict()).items()}
    assert published == keys["state_dict"]
    trained = trained_names(model)
    assert {PUBLISHED.name_of(key) for key in trained} == set(keys["trainable"])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == keys["num_trainable"]


def test_published_parameter_counts() -> None:
    counts = {}
    for name in ("vit_b16", "vit_l14_336"):
        with torch.device("meta"):
            model = build_san(golden_config(name))
        counts[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts == {"vit_b16": 8_370_866, "vit_l14_336": 9_321_650}


def test_templates(golden: Path) -> None:
    for name, prompts in json.loads((golden / "templates.json").read_text()).items():
        assert list(load_templates(name)) == prompts


def test_resize(golden: Path) -> None:
    for case in json.loads((golden / "resize_short_side_640_max_2560.json").read_text()):
        assert list(resize_short_side(*case["in"], 640, 2560)) == case["out"]


def test_evaluator(golden: Path) -> None:
    case = read_case(golden, "evaluator")
    matrix = ConfusionMatrix(int(case["num_classes"]), int(case["ignore_label"]))
    for index in range(sum(key.startswith("pred_") for key in case)):
        matrix.update(case[f"pred_{index}"], case[f"label_{index}"])
    names = [f"c{index}" for index in range(matrix.num_classes)]
    ours = metrics(matrix, names)
    expected = json.loads(str(case["metrics"]))
    assert "mIoU_detectron2_v0.6" in expected
    for key, value in expected.items():
        assert ours[key] == pytest.approx(value, rel=1e-9, nan_ok=True), key


def test_optimizer_groups(golden: Path) -> None:
    expected = {group["name"]: group for group in json.loads((golden / "optimizer_groups_vit_b16.json").read_text())}
    with torch.device("meta"):
        model = build_san(golden_config("vit_b16"))
    optimizer = build_optimizer(model, SolverConfig())
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = {PUBLISHED.name_of(name): p for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() and len(groups) == len(found)
    for name, parameter in found.items():
        assert groups[id(parameter)]["weight_decay"] == expected[name]["weight_decay"], name
        assert groups[id(parameter)]["lr"] == expected[name]["lr"], name
        assert parameter.numel() == np.prod(expected[name]["shape"]), name


def test_learning_rate(golden: Path) -> None:
    config = SolverConfig()
    for iteration, rate in json.loads((golden / "learning_rate.json").read_text()).items():
        assert config.base_lr * poly_factor(config)(int(iteration)) == pytest.approx(rate, rel=1e-9), iteration
