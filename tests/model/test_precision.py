"""Weights rounded once give what autocast gives by rounding them at every use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from san.checkpoint import load_checkpoint_file
from san.devices import cpu_supports
from san.hub import load_pretrained, save_pretrained
from san.model import int8, precision
from san.model.build import build_san
from san.model.config import variant
from san.model.int8 import Int8Embedding, Int8Linear
from san.model.precision import mixed_precision, round_weights
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
        if any(part in name for part in ("ln_", "norm", "clip.proj", "text_projection", "token_embedding")):
            assert name in left
        elif value.ndim >= 2 and "embed" not in name.rpartition(".")[2]:
            assert name not in left
    assert not any("in_proj" in name for name in left)


def test_int8_layers_are_close_and_take_a_quarter() -> None:
    """Rounding to 127 steps of the largest of 240 normal numbers, about 3, is off by 0.7 % of one, on either side."""
    torch.manual_seed(0)
    exact = nn.Linear(240, 96)
    layer = Int8Linear(exact.weight, exact.bias, torch.float32)
    for shape in ((2, 30, 240), (3, 240)):  # also fewer rows than the kernel for GPUs takes
        x = torch.randn(shape)
        found, wanted = layer(x), exact(x)
        assert found.shape == wanted.shape
        assert (found - wanted).pow(2).mean().sqrt() < 0.015 * wanted.std()
    assert layer(torch.zeros(1, 240)).allclose(exact.bias)
    assert layer.weight.nbytes * 4 == exact.weight.nbytes


@pytest.mark.parametrize("fast", [True, False])
def test_int8_sums_are_exact(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    """Also of the largest numbers."""
    monkeypatch.setattr(int8, "multiplies_int8", lambda device: fast)
    layer = Int8Linear(torch.ones(8, 64), None, torch.float32)
    assert layer.weight.unique().tolist() == [127]
    if not fast or cpu_supports("vnni"):  # without VNNI the kernel adds products in 16 bits
        assert layer(torch.full((20, 64), 0.5)).allclose(torch.tensor(32.0), rtol=1e-6)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_int8_model(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    """Next to int8 layers the network computes in bfloat16, or in float32 where that is faster."""
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: bfloat16)
    exact, model, images = drawn(), drawn(), torch.randn(1, 3, 96, 96)
    round_weights(model, torch.int8)
    layers = [each for each in model.modules() if isinstance(each, Int8Linear)]
    text_blocks = exact.arch.text.depth
    assert len(layers) == 4 * (4 + 8 + text_blocks) + 4, (
        "four in each block of both CLIP towers and the side network, and the fusions"
    )
    assert model.mask_head.query_mlp.layers[0].weight.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
    with torch.inference_mode():
        wanted = exact.propose(images)[0]
        with mixed_precision(torch.device("cpu"), torch.int8):
            found = model.propose(images)[0]
    # two roundings to 127 steps a layer, of random weights
    cosine = torch.nn.functional.cosine_similarity(found.sls_embed.float(), wanted.sls_embed, dim=-1)
    assert cosine.min() > 0.99
    assert (found.mask_logits - wanted.mask_logits).pow(2).mean().sqrt() < 0.1 * wanted.mask_logits.std()


def test_text_in_bfloat16() -> None:
    """8 bits of a number, in two blocks: unit vectors of 64 numbers differ by less than 0.02 in length."""
    exact, half, words = drawn(), drawn(), ["cat", "potted plant"]
    round_weights(half, torch.bfloat16)
    found, wanted = half.text_classifier.embed(words), exact.text_classifier.embed(words)
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).norm(dim=-1).max() < 0.02
    kept, own = half.text_classifier, exact.text_classifier
    assert kept.embedder.fingerprint(kept) != own.embedder.fingerprint(own)
    plain = drawn().text_classifier
    plain.load_state_dict(kept.state_dict())  # a model of the same numbers in float32 has other embeddings
    assert kept.embedder.fingerprint(kept) != plain.embedder.fingerprint(plain)


def test_text_in_int8() -> None:
    """Two roundings to 127 steps a layer, in two blocks, of random weights."""
    exact, model, words = drawn(), drawn(), ["cat", "potted plant"]
    round_weights(model, torch.int8)
    text = model.text_classifier
    assert isinstance(text.token_embedding, Int8Embedding)
    assert 0 < (text.embed(words) - exact.text_classifier.embed(words)).norm(dim=-1).max() < 0.05
    before = text.embedder.fingerprint(text)
    text.transformer.get_submodule("resblocks.0.mlp.c_fc").weight[0, 0] += 1  # a buffer
    assert text.embedder.fingerprint(text) != before


def test_int8_file(tmp_path: Path) -> None:
    """A quarter of the size of the matrices; in int8 the same bits as the whole model's, in float32 half a step off."""
    exact = drawn()
    small = save_pretrained(exact, tmp_path / "int8", dtype="int8")
    whole = save_pretrained(exact, tmp_path / "float32")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (small, whole)]
    matrices = sum(each.weight.numel() for each in _in_int8(drawn()))
    assert 0 < sizes[1] - sizes[0] - 3 * matrices * (1 - 4 / 3 / 16) < 0.1 * sizes[1]
    assert "in int8" in (small / "README.md").read_text()
    loaded = load_pretrained(small)
    for (name, found), wanted in zip(loaded.state_dict().items(), exact.state_dict().values(), strict=True):
        assert found.dtype == torch.float32
        if not torch.equal(found, wanted):
            assert (found - wanted).abs().max() <= 0.501 * wanted.abs().max() / 127, name
    for again, once in zip(_in_int8(loaded), _in_int8(exact), strict=True):
        assert torch.equal(again.weight, once.weight)
        assert again.scale.allclose(once.scale, rtol=1e-6)


def _in_int8(model: SANModel) -> list[Int8Linear | Int8Embedding]:
    """The int8 layers of a model, which is changed."""
    round_weights(model, torch.int8)
    return [each for each in model.modules() if isinstance(each, (Int8Linear, Int8Embedding))]


def test_damaged_int8_file(tmp_path: Path) -> None:
    path = save_pretrained(drawn(), tmp_path, dtype="int8") / "model.safetensors"
    tensors = load_file(path)
    scale = next(name for name in tensors if name.endswith("in_proj_weight.int8_scale"))
    for wrong, found in ((None, "found none"), (torch.ones(3), r"found torch.float32 \(3,\)")):
        changed = {name: value for name, value in tensors.items() if name != scale}
        save_file(changed if wrong is None else {**changed, scale: wrong}, path)
        with pytest.raises(ValueError, match=rf"in_proj_weight' of shape .* needs one scale a row in .*{found}"):
            load_checkpoint_file(path)


def test_float32_stays(tmp_path: Path) -> None:
    model = drawn()
    round_weights(model, torch.float32)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_rounded_weights_are_not_saved(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: False)
    model = drawn()
    round_weights(model, dtype)
    with pytest.raises(ValueError, match=rf"rounded to {dtype} for prediction; load it in float32"):
        save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
