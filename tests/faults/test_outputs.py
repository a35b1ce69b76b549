"""Outputs of the network that are NaN or infinite: an error that names the image, nowhere a label."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from san.cli import predict
from san.cli.main import main
from san.d2 import register_datasets
from san.d2.api import build_model
from san.d2.evaluate.evaluation import evaluate
from san.demo.examples import shapes_examples
from san.demo.limits import Limits
from san.demo.service import DemoService, explain
from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import variant
from san.model.san import MaskProposals, SANModel
from san.postprocess import have_non_finite, refuse_non_finite
from san.web.words import Words

WHITE = np.full((40, 60, 3), 255, np.uint8)
"""What `spoil` makes the network fail on."""
GREY = WHITE // 2


def spoil(model: SANModel, value: float = math.nan, part: str = "mask_logits") -> None:
    """Sets one number of the proposals of a white image to this value from now on."""
    propose = model.propose

    def spoiled(images: torch.Tensor) -> list[MaskProposals]:
        *earlier, last = propose(images)
        found = getattr(last, part).clone()
        found.flatten(1)[images[:, :, :32, :32].amin(dim=(1, 2, 3)) > 0.5, -1] = value
        return [*earlier, last._replace(**{part: found})]

    model.propose = spoiled  # type: ignore[method-assign]


@pytest.fixture
def spoiled() -> Predictor:
    torch.manual_seed(0)
    predictor = Predictor(build_san(variant("tiny")), short_side=64)
    spoil(predictor.model)
    return predictor


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_value_is_enough(value: float, dtype: torch.dtype) -> None:
    shapes = ((3, 4, 5, 6), (3, 4, 7))
    for place in range(2):
        outputs = [torch.randn(shape).to(dtype) for shape in shapes]
        assert have_non_finite(*outputs).tolist() == [False] * 3
        outputs[place][1].view(-1)[-2] = value
        assert have_non_finite(*outputs).tolist() == [False, True, False]
        with pytest.raises(ValueError, match="outputs for b are NaN or infinite; compute in float32"):
            refuse_non_finite(have_non_finite(*outputs), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("value", "part"), [(math.nan, "mask_logits"), (-math.inf, "mask_logits"), (math.inf, "sls_embed")]
)
def test_a_predictor_names_the_image(value: float, part: str, tmp_path: Path) -> None:
    predictor = Predictor(build_san(variant("tiny")), short_side=64)
    spoil(predictor.model, value, part)
    Image.fromarray(WHITE).save(tmp_path / "white.png")
    with pytest.raises(ValueError, match=r"outputs for '.*white\.png' are NaN"):
        predictor.predict(tmp_path / "white.png", "cat")
    with pytest.raises(ValueError, match="outputs for the image are NaN"):
        predictor.predict(WHITE, "cat")
    with pytest.raises(ValueError, match="outputs for image 1 are NaN"):
        predictor.predict_batch([GREY, WHITE], "cat")
    assert predictor.predict(GREY, "cat, dog").labels.shape == (40, 60)


def test_the_command_passes_the_image_over(
    spoiled: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "load_segmenter", lambda args: spoiled)
    (tmp_path / "in").mkdir()
    for name, pixels in (("a", GREY), ("b", WHITE), ("c", GREY)):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    command = ["predict", str(tmp_path / "in"), "--vocab", "cat, dog", "--out", str(tmp_path / "out")]
    assert main([*command, "--format", "labels", "--batch-size", "3"]) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_labels.png", "c_labels.png"]
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("skipped")]
    assert "b.png" in line
    assert "NaN or infinite" in line


@pytest.mark.parametrize("scores", [False, True])
def test_an_evaluation_ends_and_names_the_image(make_cfg: Callable[..., Any], own_voc: Path, scores: bool) -> None:
    for file in (own_voc / "VOC2012/JPEGImages").glob("val_001.jpg"):
        Image.fromarray(np.full_like(np.asarray(Image.open(file)), 255)).save(file)
    register_datasets(own_voc)
    cfg = make_cfg(DATASETS__TEST=["voc_sem_seg_val"], DATASETS__ROOT=str(own_voc), TEST__SCORES=scores)
    model = build_model(cfg)
    spoil(model.model)
    with pytest.raises(ValueError, match=r"outputs for .*val_001\.jpg are NaN or infinite"):
        evaluate(cfg, model)
    assert not (Path(cfg.OUTPUT_DIR) / "inference/voc_sem_seg_val/metrics.json").exists()


def test_a_batch_of_several_vocabularies_names_the_image(make_cfg: Callable[..., Any], shared_voc: Path) -> None:
    register_datasets(shared_voc)
    model = build_model(make_cfg()).eval()
    spoil(model.model)
    images = [torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (127, 255)]
    names = ("voc_sem_seg_val", "ade20k_sem_seg_val", "voc_sem_seg_val")
    samples = [{"image": images[i], "dataset_name": name} for i, name in zip((0, 1, 0), names, strict=True)]
    with torch.no_grad(), pytest.raises(ValueError, match="outputs for image 1 of the batch are NaN"):
        model(samples)


def test_the_demo_answers_with_a_message(spoiled: Predictor) -> None:
    service = DemoService(spoiled, shapes_examples(), Limits())
    try:
        session = service.open_picture(WHITE, "white.png")
        with pytest.raises(ValueError, match="NaN or infinite") as raised:
            service.segment(session, Words("cat, dog"))
        assert "the network's outputs for the image are NaN" in explain(raised.value)
        assert service.segment(service.open_picture(GREY, "grey.png"), Words("cat, dog"))[0].names == ("cat", "dog")
    finally:
        service.close()
