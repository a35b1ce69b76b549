"""Weights rounded once give what autocast gives by rounding them at every use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from san.hub import save_pretrained
from san.model.build import build_san
from san.model.config import variant
from san.model.precision import round_weights
from san.model.san import SANModel


def drawn(name: str = "tiny") -> SANModel:
    torch.manual_seed(0)
    return build_san(variant(name)).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_numbers_are_autocasts(dtype: torch.dtype) -> None:
    images, results = torch.randn(2, 3, 96, 128), []
    for held in (False, True):
        model = drawn()
        if held:
            round_weights(model, dtype)
        with torch.inference_mode(), torch.autocast("cpu", dtype):
            results.append(model.propose(images)[0])
    for name in ("mask_logits", "attn_bias", "sls_embed"):
        assert torch.equal(getattr(results[0], name), getattr(results[1], name)), name


def test_what_is_rounded_and_what_is_not() -> None:
    model = drawn()
    round_weights(model, torch.bfloat16)
    left = {name for name, value in model.named_parameters() if value.dtype == torch.float32}
    for name, value in model.named_parameters():
        if name.startswith("text_classifier.") or "ln_" in name or "norm" in name:
            assert name in left
        elif value.ndim >= 2 and "embed" not in name.rpartition(".")[2]:
            assert name not in left
    assert not any("in_proj" in name for name in left if not name.startswith("text_classifier."))


def test_float32_stays(tmp_path: Path) -> None:
    model = drawn()
    round_weights(model, torch.float32)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_rounded_weights_are_not_saved(tmp_path: Path) -> None:
    model = drawn()
    round_weights(model, torch.bfloat16)
    with pytest.raises(ValueError, match=r"rounded to torch.bfloat16 for prediction; load it in float32"):
        save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
