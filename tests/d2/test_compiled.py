"""MODEL.COMPILE: training through torch.compile, with the numbers of the plain run (prediction: test_predictor.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from san.d2.api import CfgNode, MetadataCatalog, build_model

FEW_BLOCKS = {
    "MODEL__SIDE_ADAPTER__DEPTH": 2,
    "MODEL__SIDE_ADAPTER__SUPERVISED_BLOCKS": [1, 2],
    "MODEL__SIDE_ADAPTER__FUSION": ["0->0", "2->1"],
}
"""Each block takes seconds to compile."""


def samples() -> list[dict[str, Any]]:
    generator = torch.manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=generator)
    maps = torch.randint(0, 3, (2, 4, 4), generator=generator).repeat_interleave(24, 1).repeat_interleave(24, 2)
    return [
        {"image": image, "sem_seg": sem_seg, "dataset_name": "words", "seed": index}
        for index, (image, sem_seg) in enumerate(zip(images, maps, strict=True))
    ]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_losses_and_gradients_are_those_of_the_plain_run(
    make_cfg: Callable[..., CfgNode], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """By default without C++ code, whose compilation takes two minutes; prediction is compiled with it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    MetadataCatalog.get("words").stuff_classes = ["cat", "dog", "grass"]
    results: list[tuple[dict[str, Tensor], Tensor]] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        meta = build_model(make_cfg(MODEL__COMPILE=compiled, **FEW_BLOCKS)).train()
        assert (meta.model.image_side._compiled_call_impl is not None) == compiled
        losses = meta(samples())
        torch.stack(list(losses.values())).sum().backward()
        results.append((losses, meta.model.bias_head.attn_mlp.layers[0].weight.grad))
    (losses, gradient), (own_losses, own_gradient) = results
    assert losses.keys() == own_losses.keys()
    for name, value in losses.items():
        torch.testing.assert_close(own_losses[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max()))
