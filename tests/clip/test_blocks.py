"""Attention written out in bfloat16 against torch's kernel in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from san.clip import blocks
from san.clip.blocks import attend


@pytest.fixture
def qkv(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of bfloat16, of which the keys have a large mean as in trained networks; a CPU without AMX."""
    monkeypatch.setattr(blocks, "cpu_supports", lambda instructions: False)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 40).bfloat16().float() for length in (70, 90, 90))
    return q, (k + 3 * torch.randn(1, 3, 1, 40)).bfloat16().float(), v


def test_float32_is_torchs_kernel(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    assert torch.equal(attend(*qkv), F.scaled_dot_product_attention(*qkv))


@pytest.mark.parametrize("max_logits", [2**25, 3 * 90 * 32])
def test_bfloat16_written_out(
    qkv: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, max_logits: int
) -> None:
    """Results and gradients: logits of up to about 8 are rounded to 8 bits, so that weights are off by up to 1.6 %."""
    monkeypatch.setattr(blocks, "_MAX_LOGITS", max_logits)
    exact = [each.clone().requires_grad_() for each in qkv]
    half = [each.bfloat16().requires_grad_() for each in qkv]
    wanted, found = F.scaled_dot_product_attention(*exact), attend(*half)
    assert found.dtype == torch.bfloat16
    assert_close(found, wanted)
    wanted.square().sum().backward()
    found.float().square().sum().backward()
    for own, other in zip(half, exact, strict=True):
        assert own.grad is not None
        assert_close(own.grad, other.grad)


def assert_close(found: Tensor, wanted: Tensor | None) -> None:
    assert wanted is not None
    assert (found.float() - wanted).pow(2).mean().sqrt() < 0.02 * wanted.pow(2).mean().sqrt()
