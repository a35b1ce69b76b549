"""Settings of all tests: markers, threads, the golden folder."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from san.clip import text_cache

REPO = Path(__file__).resolve().parent.parent


def golden_dir() -> Path:
    """The folder of golden numbers: SAN_GOLDEN_DIR, or the project's copy."""
    return Path(os.environ.get("SAN_GOLDEN_DIR") or REPO / "tests" / "golden")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow (or set SAN_SLOW=1)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") != "gpu":
        # what runs is the same on every machine; and no forked process can go on from one that has used a GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("WANDB_MODE", "offline")
    # with a worker of xdist per core, further threads only wait for each other; in processes that tests start, too
    most = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
    torch.set_num_threads(min(torch.get_num_threads(), most))
    if most == 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # no test writes to the user's cache, neither here nor in a process that it starts
    folder = os.environ["SAN_CACHE"] = tempfile.mkdtemp(prefix="san-cache-")
    text_cache.DEFAULT_FOLDER = f"{folder}/text"
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # last: once there was a tensor on "cuda", backward passes start threads, and forked processes can do none
    items.sort(key=lambda item: item.path.name == "test_fake_gpu.py")
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "no CUDA device, or not run with -m gpu"
    if importlib.util.find_spec("detectron2") is None:
        reasons["detectron2"] = "Detectron2 is not installed"
    if not (config.getoption("--slow") or os.environ.get("SAN_SLOW")):
        reasons["slow"] = "slow; run with --slow"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden numbers."""
    folder = golden_dir()
    if not folder.is_dir():
        pytest.fail(f"no golden numbers in {folder}; unset SAN_GOLDEN_DIR or point it at a folder like tests/golden")
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return REPO


@pytest.fixture(autouse=True)
def logs_reach_caplog() -> None:
    """A run sets up loggers that keep their records to themselves; the next test starts without that."""
    for name in ("san", "fvcore", "detectron2"):
        logging.getLogger(name).propagate = True
