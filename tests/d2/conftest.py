"""A tiny model and a tiny data set in VOC's layout, for tests of the framework side."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.forks import fork_as_spawn

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.CLIP.NAME": "tiny",
    "MODEL.CLIP.PRETRAINED": "",
    "MODEL.CLIP.SHALLOW_DEPTH": 3,
    "MODEL.SIDE_ADAPTER.EMBED_DIM": 24,
    "MODEL.SIDE_ADAPTER.NUM_HEADS": 2,
    "MODEL.SIDE_ADAPTER.DEPTH": 3,
    "MODEL.SIDE_ADAPTER.IMAGE_SIZE": 64,
    "MODEL.SIDE_ADAPTER.NUM_QUERIES": 6,
    "MODEL.SIDE_ADAPTER.FUSION": ["0->0", "1->1", "3->2"],
    "MODEL.SIDE_ADAPTER.SUPERVISED_BLOCKS": [2, 3],
    "MODEL.HEAD.EMBED_CHANNELS": 16,
    "MODEL.HEAD.MLP_CHANNELS": 16,
    "MODEL.ATTN_BIAS.NUM_HEADS": 3,
    "MODEL.LOSS.NUM_POINTS": 64,
    "INPUT.MIN_SIZE_TRAIN": [64, 80],
    "INPUT.CROP.SIZE": [64, 64],
    "INPUT.MIN_SIZE_TEST": 64,
    "DATASETS.TRAIN": ["voc_sem_seg_train"],
    "DATASETS.TEST": [],
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.CHECKPOINT_PERIOD": 1000,
    "SOLVER.LOG_PERIOD": 1,
    "TEST.EVAL_PERIOD": 0,
    "TEST.NUM_PANELS": 1,
    "SEED": 7,
}
"""Options of a run that takes about a second; one thread and one process."""


def write_voc(root: Path, *, train: int = 7, val: int = 3) -> None:
    """Writes images of coloured blocks with their label maps, in VOC's layout."""
    rng = np.random.default_rng(0)
    for split, number in (("train", train), ("val", val)):
        (root / "VOC2012/JPEGImages").mkdir(parents=True, exist_ok=True)
        (root / f"VOC2012/annotations_detectron2/{split}").mkdir(parents=True, exist_ok=True)
        for index in range(number):
            labels = np.full((70 + index, 90), 255, np.uint8)
            labels[5:40, 5:45] = index % 20
            labels[30:70, 40:88] = (index * 3 + 5) % 20
            image = rng.integers(0, 60, (*labels.shape, 3), np.uint8)
            image[..., 0] += labels % 20 * 9
            image[..., 1] += labels % 7 * 20
            name = f"{split}_{index:03d}"
            Image.fromarray(image).save(root / f"VOC2012/JPEGImages/{name}.jpg", quality=95)
            Image.fromarray(labels).save(root / f"VOC2012/annotations_detectron2/{split}/{name}.png")


@pytest.fixture(scope="session")
def shared_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datasets root that no test changes."""
    root = tmp_path_factory.mktemp("datasets")
    write_voc(root)
    return root


@pytest.fixture
def own_voc(tmp_path: Path) -> Path:
    """A datasets root that the test may spoil."""
    write_voc(tmp_path / "datasets", train=4, val=2)
    return tmp_path / "datasets"


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Options as KEY VALUE pairs of the command line."""
    return [part for key, value in options.items() for part in (key, str(value))]


@pytest.fixture
def options(shared_voc: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of a tiny run on the shared data set, writing under tmp_path/run."""
    return TINY | {"DATASETS.ROOT": str(shared_voc), "OUTPUT_DIR": str(tmp_path / "run")}


@pytest.fixture
def make_cfg(options: dict[str, Any]) -> Callable[..., Any]:
    """A function from changed options to a configuration."""
    from san.d2.config.keys import load_config

    def make(**changes: Any) -> Any:
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        cfg = load_config("", as_arguments(options | changed))
        cfg.freeze()
        return cfg

    return make


def lines_writer(engine: Any, path: Path) -> Any:
    """An engine's writer of what its storage gives, as JSON lines: one per iteration that has anything new."""

    class Lines(engine.EventWriter):  # type: ignore[misc, name-defined]
        last = -1

        def write(self) -> None:
            rows: dict[int, dict[str, float]] = {}
            for name, (value, iteration) in engine.get_event_storage().latest_with_smoothing_hint(20).items():
                if iteration > self.last:
                    rows.setdefault(iteration, {})[name] = value
            self.last = max(rows, default=self.last)
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row | {"iteration": at}, sort_keys=True) + "\n" for at, row in rows.items())

    return Lines()


@contextlib.contextmanager
def without_charts() -> Iterator[None]:
    """Charts and large panels take most of a tiny run's time; here charts are empty files, and panels small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("san.d2.train.run_hooks.plot_curves", lambda metrics, path, **_: path.touch())
        patch.setattr("san.visualize.plot_per_class", lambda values, path, **_: path.touch())
        patch.setattr(importlib.import_module("san.visualize.panel"), "_MIN_SIDE", 48)
        yield


@pytest.fixture(autouse=True, scope="module")
def no_charts() -> Iterator[None]:
    """Only `reference` has charts."""
    with without_charts():
        yield


@pytest.fixture(autouse=True, scope="module")
def forked_workers() -> Iterator[None]:
    """The stand-in forks its workers; a worker that imports everything itself takes seconds more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("san.d2.standin.launch"), "spawn", fork_as_spawn)
        yield


@pytest.fixture(scope="session")
def reference(shared_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `reference_run`, with its charts."""
    from san.visualize import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("san.d2.train.run_hooks.plot_curves", plots.plot_curves)
        patch.setattr("san.visualize.plot_per_class", plots.plot_per_class)
        return reference_run(shared_voc, tmp_path_factory.mktemp("reference"))


def reference_run(voc: Path, folder: Path) -> Path:
    """Trains 6 iterations, with checkpoints and evaluations every 3, into a folder; returns the folder."""
    from san.d2.config.keys import load_config
    from san.d2.run import run

    changes = {"SOLVER.CHECKPOINT_PERIOD": 3, "TEST.EVAL_PERIOD": 3, "DATASETS.TEST": ["voc_sem_seg_val"]}
    options = TINY | changes | {"DATASETS.ROOT": str(voc), "OUTPUT_DIR": str(folder)}
    run(load_config("", as_arguments(options)))
    return folder
