"""Measures another implementation in the same rounds, through an adapter that the user writes.

An adapter is a Python file with a function ``make_run``, or a folder with such a file, ``san_benchmark.py``. Modules
are searched for in this folder first. See docs/benchmarks.md.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from san.benchmark.cases import Case
from san.benchmark.clocks import Recorder
from san.benchmark.text import class_names
from san.benchmark.workload import Workload, random_images

ADAPTER_FILE = "san_benchmark.py"
"""File name of an adapter that is given as a folder."""

PART = "all"
"""The only part of a run of another implementation."""


class MakeRun(Protocol):
    """The function ``make_run`` of an adapter."""

    def __call__(self, case: Mapping[str, Any], inputs: Mapping[str, Any]) -> Callable[[], object] | None:
        """Set up a case: build the model, initialise its weights.

        Args:
            case: the fields of `san.benchmark.cases.Case`, such as task, model, classes and dtype.
            inputs: ``device``, and ``images``, (3, height, width) uint8 each, on the device; for the task "text",
                ``names`` instead.

        Returns:
            A function that does the task once, from these inputs to the result; None to skip the case.
        """


def adapter_file(path: Path) -> Path:
    """Return the file of an adapter.

    Raises:
        FileNotFoundError: it does not exist.
    """
    file = path / ADAPTER_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"no adapter at {str(file)!r}; give a Python file with a function make_run, or a folder with such a file "
            f"called {ADAPTER_FILE} (docs/benchmarks.md)"
        )
    return file


def load_adapter(path: Path) -> MakeRun:
    """Import an adapter, and return its function ``make_run``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it has no function ``make_run``.
    """
    file = adapter_file(path)
    spec = importlib.util.spec_from_file_location("san_benchmark_adapter", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"the adapter {str(file)!r} is no Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))
    spec.loader.exec_module(module)
    make_run: MakeRun | None = getattr(module, "make_run", None)
    if not callable(make_run):
        raise ValueError(f"the adapter {str(file)!r} has no function make_run(case, inputs); see docs/benchmarks.md")
    return make_run


def make_workload(case: Case, device: torch.device, path: Path) -> Workload | None:
    """Return a case as a workload of another implementation; None if its adapter skips the case.

    Raises:
        FileNotFoundError, ValueError: see `load_adapter`; errors of the adapter are raised unchanged.
    """
    inputs: dict[str, Any] = {"device": device}
    inputs |= {"names": class_names(case.classes)} if case.task == "text" else {"images": random_images(case, device)}
    once = load_adapter(path)(case.to_dict(), inputs)
    if once is None:
        return None

    def run(recorder: Recorder) -> None:
        once()
        recorder.mark(PART)

    return Workload(run, case.batch if case.task != "text" else case.classes)
