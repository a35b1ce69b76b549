"""Training data that cannot be read: tried again, replaced, counted, and too much of it stops training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from san.d2.data.bad_data import BadData
from san.d2.data.batches import BadSample
from san.d2.data.loaders import PositionDataset, StreamConfig, build_eval_loader, build_train_loader
from san.d2.run import run
from tests.d2.conftest import write_voc

MakeCfg = Callable[..., Any]

IMAGES = "VOC2012/JPEGImages"
RECORDS = [{"file_name": str(index)} for index in range(20)]


def load(record: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
    """Image 3 cannot be read."""
    if record["file_name"] == "3":
        raise ValueError("image 3 cannot be read")
    return dict(record) | ({} if rng is None else {"drawn": rng.random()})


def stream(**changes: int) -> StreamConfig:
    return StreamConfig(**({"seed": 1, "batch_size": 4, "start_iter": 0, "max_iter": 10} | changes))


def samples(config: StreamConfig, workers: int = 0) -> tuple[list[tuple[Any, ...]], list[BadSample]]:
    batches = build_train_loader(RECORDS, load, config, num_workers=workers)
    found = [(s["position"], s["file_name"], s["drawn"], s["seed"]) for batch in batches for s in batch]
    return sorted(found), batches.take_replaced()


def test_replacements_depend_on_seed_and_position_only() -> None:
    """Whatever the loading workers, processes and interruptions; and all other samples are what they would be."""
    whole, bad = samples(stream())
    assert {each.file_name for each in bad} == {"3"} and len(bad) >= 2  # two passes, and it may be drawn again
    assert "3" not in {name for _, name, *_ in whole} and len(whole) == 40
    assert samples(stream(), workers=2)[0] == whole
    assert samples(stream(start_iter=5))[0] == whole[20:]
    assert sorted(samples(stream(rank=0, world=2))[0] + samples(stream(rank=1, world=2))[0]) == whole
    healthy = PositionDataset(RECORDS, lambda record, rng: dict(record) | {"drawn": rng.random()}, 1)
    others = {p: (p, s["file_name"], s["drawn"], s["seed"]) for p in range(40) for s in [healthy[p]]}
    assert sum(others[each[0]] != each for each in whole) == 2


def test_a_file_that_stumbles_once_is_read_at_the_second_try() -> None:
    failed: set[str] = set()

    def stumble(record: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        if record["file_name"] not in failed:
            failed.add(record["file_name"])
            raise OSError("stale file handle")
        return dict(record) | ({} if rng is None else {"drawn": rng.random()})

    dataset = PositionDataset(RECORDS, stumble, 1)
    first = [dataset[position] for position in range(20)]
    assert len(failed) == 20 and [dataset[position] for position in range(20)] == first
    assert not any("bad" in sample for sample in first)
    failed.clear()
    assert len(list(build_eval_loader(RECORDS, stumble))) == 20


def test_many_bad_files_at_once_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [BadSample(ValueError, f"image {number}.jpg is damaged", f"{number}.jpg") for number in range(30)]
    with caplog.at_level(logging.WARNING):
        BadData(100, 0.5, tmp_path).note(bad)
    (record,) = caplog.records
    assert record.getMessage().startswith("image 0.jpg is damaged; image 1.jpg")
    assert record.getMessage().endswith("and 22 more; using another sample instead (30 of 100 cannot be read)")
    assert len(json.loads((tmp_path / "bad_data.json").read_text())["bad"]) == 30


@pytest.mark.parametrize(("accumulation", "loaders"), [(1, 0), (2, 1)])
def test_a_bad_file_within_the_share(make_cfg: MakeCfg, own_voc: Path, accumulation: int, loaders: int) -> None:
    (own_voc / IMAGES / "train_002.jpg").write_bytes(b"no picture")
    cfg = make_cfg(
        DATASETS__ROOT=str(own_voc), DATALOADER__MAX_BAD_SHARE=0.25, SOLVER__MAX_ITER=3,
        SOLVER__ACCUMULATION_STEPS=accumulation, DATALOADER__NUM_WORKERS=loaders,
    )  # fmt: skip
    run(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    log = (folder / "log.txt").read_text()
    assert log.count("using another sample instead (1 of 4 cannot be read)") == 1 and "train_002.jpg" in log
    listed = json.loads((folder / "bad_data.json").read_text())
    assert listed["total"] == 4 and [Path(name).name for name in listed["bad"]] == ["train_002.jpg"]
    assert (folder / "model_final.pth").is_file()


def test_too_many_bad_files_stop_training_with_the_list(make_cfg: MakeCfg, tmp_path: Path) -> None:
    write_voc(tmp_path / "datasets", train=16, val=1)
    for number in (3, 9, 11):
        (tmp_path / "datasets" / IMAGES / f"train_{number:03d}.jpg").write_bytes(b"")
    cfg = make_cfg(DATASETS__ROOT=str(tmp_path / "datasets"), DATALOADER__MAX_BAD_SHARE=0.125, SOLVER__MAX_ITER=8)
    with pytest.raises(
        ValueError, match=r"3 of 16 training samples \(19 %\) cannot be read, more than DATALOADER.MAX"
    ) as e:
        run(cfg)
    assert all(f"train_{number:03d}.jpg" in str(e.value) for number in (3, 9, 11)) and "\n" not in str(e.value)
    assert len(json.loads((Path(cfg.OUTPUT_DIR) / "bad_data.json").read_text())["bad"]) == 3
