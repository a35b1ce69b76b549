"""Out of memory in evaluation: smaller chunks, then the CPU, each logged once; figures stay. Errors are injected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from san.d2 import meta_arch
from san.d2.evaluate.out_of_memory import OutOfMemoryFallback
from san.d2.run import run

MakeCfg = Callable[..., Any]


@pytest.mark.parametrize("never_enough", [False, True])
def test_the_figures_stay(
    make_cfg: MakeCfg, reference: Path, monkeypatch: pytest.MonkeyPatch, never_enough: bool
) -> None:
    """The bands of usual height do not fit; or none fit but those of the copy on the CPU, of the second image."""
    real, asked = meta_arch.semantic_labels, []

    def labels(*arguments: Any, shrink: int) -> torch.Tensor:
        asked.append(shrink)
        full = len(asked) in (2, 3) if never_enough else shrink == 1
        if full:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, shrink=shrink)

    monkeypatch.setattr(meta_arch, "semantic_labels", labels)
    weights = str(reference / "model_final.pth")
    cfg = make_cfg(DATASETS__TEST=["voc_sem_seg_val"], MODEL__WEIGHTS=weights)
    run(cfg, eval_only=True)
    folder, report = Path(cfg.OUTPUT_DIR), "inference/voc_sem_seg_val/metrics.json"
    assert asked == ([1, 1, 16, 16, 16] if never_enough else [1, 16, 16, 16])
    assert (folder / report).read_bytes() == (reference / report).read_bytes()
    log = (folder / "log.txt").read_text()
    assert log.count("chunks that are smaller by a factor of 16") == 1
    assert log.count("computed on the CPU") == int(never_enough)


class WithoutBands(torch.nn.Module):
    """A model of a user's own that fits the memory as a copy only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = [id(self)]

    def forward(self, batch: list[Any]) -> list[Any]:
        if id(self) in self.first:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return batch


def test_a_model_without_bands_is_copied_to_the_cpu_at_once(caplog: pytest.LogCaptureFixture) -> None:
    model = WithoutBands()
    attributes = set(vars(model))
    assert OutOfMemoryFallback(model)([1, 2]) == [1, 2]
    assert "computed on the CPU" in caplog.text and "smaller by" not in caplog.text
    assert set(vars(model)) == attributes


def test_other_errors_are_not_caught(make_cfg: MakeCfg, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(meta_arch, "semantic_labels", fail)
    weights = str(reference / "model_final.pth")
    with pytest.raises(RuntimeError, match="no such kernel"):
        run(make_cfg(DATASETS__TEST=["voc_sem_seg_val"], MODEL__WEIGHTS=weights), eval_only=True)
