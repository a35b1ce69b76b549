"""All names that SAN imports from Detectron2. No other module of SAN imports it.

If Detectron2 can be imported, the names are its own; otherwise they are those of `san.d2.standin`, which behave the
same. The environment variable ``SAN_BACKEND`` (``detectron2`` or ``standin``) selects one. Nothing is logged on import:
`log_backend` logs the backend and the reason once, when training starts.

Names and their use:

- ``CfgNode``, ``get_cfg``: configuration with ``_BASE_``, ``merge_from_file``, ``merge_from_list``.
- ``META_ARCH_REGISTRY``, ``build_model``: builds the model by its configured name, on ``MODEL.DEVICE``.
- ``DatasetCatalog``, ``MetadataCatalog``: data sets by name.
- ``TrainerBase``, ``HookBase``, ``hooks`` (``IterationTimer``, ``LRScheduler``, ``EvalHook``, ``PeriodicWriter``): the
  training loop.
- ``DetectionCheckpointer``: checkpoint files (``_load_file``, ``_load_model``, ``save``, ``resume_or_load``, ...).
- ``default_argument_parser``, ``launch``: command line and worker processes.
- ``comm``: ``get_rank``, ``get_local_rank``, ``get_world_size``, ``is_main_process``, ``synchronize``, ``gather``,
  ``all_gather``, ``shared_random_seed``, ``create_local_process_group``; `broadcast`, `forget_groups` and
  `forget_log_files`, which Detectron2 does not have.
- ``EventStorage``, ``get_event_storage``, ``EventWriter``, ``TensorboardXWriter``: logged values.
- ``DatasetEvaluator``, ``verify_results``: evaluation.
- ``setup_logger``: a named logger with colour on the terminal and a file per worker.

Source: docs/architecture.md#detectron2.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any, Literal

import torch.distributed as dist

from san.io.errors import require_extra

Backend = Literal["detectron2", "standin"]
"""The two backends of this module."""

BACKEND_VARIABLE = "SAN_BACKEND"


def _choose_backend() -> tuple[Backend, str]:
    """Choose the backend.

    Returns:
        The backend, and the reason as a sentence for the log.

    Raises:
        ValueError: ``SAN_BACKEND`` is neither backend.
        ImportError: ``SAN_BACKEND`` is ``detectron2``, and Detectron2 cannot be imported.
    """
    forced = os.environ.get(BACKEND_VARIABLE, "")
    if forced == "standin":
        return "standin", f"{BACKEND_VARIABLE}=standin"
    if forced not in ("", "detectron2"):
        raise ValueError(f"{BACKEND_VARIABLE} is {forced!r}; set it to 'detectron2' or 'standin', or leave it unset")
    try:
        with warnings.catch_warnings():  # from fvcore, about its use of torch.jit; a user cannot fix them
            warnings.filterwarnings("ignore", r".*torch\.jit")
            import detectron2.engine  # imports all dependencies, so an incomplete installation fails
            import detectron2.modeling
    except ImportError as error:
        if forced:
            raise ImportError(
                f"{BACKEND_VARIABLE}=detectron2, but Detectron2 does not import ({error}); "
                f"install it (install.sh tries to), or unset {BACKEND_VARIABLE} to run on the stand-in"
            ) from error
        return "standin", f"Detectron2 does not import ({error})"
    version = getattr(detectron2, "__version__", "unknown")
    return "detectron2", f"{BACKEND_VARIABLE}=detectron2" if forced else f"Detectron2 {version} imports"


BACKEND, BACKEND_REASON = _choose_backend()

if BACKEND == "detectron2":
    import detectron2.utils.logger
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode, get_cfg
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.engine import (
        HookBase,
        TrainerBase,
        default_argument_parser,
        hooks,
        launch,
    )
    from detectron2.evaluation import DatasetEvaluator, verify_results
    from detectron2.modeling import META_ARCH_REGISTRY, build_model
    from detectron2.utils import comm
    from detectron2.utils.events import EventStorage, EventWriter, TensorboardXWriter, get_event_storage
    from detectron2.utils.logger import setup_logger
else:
    require_extra("train", "san.d2 (training, evaluation, registered data sets, configuration files)", "fvcore")
    from san.d2.standin import (  # type: ignore[assignment]
        META_ARCH_REGISTRY,
        CfgNode,
        DatasetCatalog,
        DatasetEvaluator,
        DetectionCheckpointer,
        EventStorage,
        EventWriter,
        HookBase,
        MetadataCatalog,
        TensorboardXWriter,
        TrainerBase,
        build_model,
        comm,
        default_argument_parser,
        get_cfg,
        get_event_storage,
        hooks,
        launch,
        setup_logger,
        verify_results,
    )


def broadcast(value: Any) -> Any:
    """Return the main process's value in every process; every process must call it.

    Args:
        value: picklable object; ignored in other processes.
    """
    if comm.get_world_size() == 1:
        return value
    group = comm.gloo_group() if BACKEND == "standin" else comm._get_global_gloo_group()  # type: ignore[attr-defined]
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def forget_groups() -> None:
    """Drop `comm`'s references to process groups before a worker exits; a referenced group keeps its threads."""
    if BACKEND == "standin":
        comm.forget_groups()  # type: ignore[attr-defined]
        return
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def forget_log_files() -> None:
    """Make loggers that are set up later reopen their files; Detectron2 caches open files, even if they were moved."""
    if BACKEND == "detectron2":
        detectron2.utils.logger._cached_log_stream.cache_clear()


def log_backend(logger: logging.Logger) -> None:
    """Log the backend and the reason.

    Args:
        logger: receives the line.
    """
    names = {"detectron2": "Detectron2", "standin": "the stand-in (san.d2.standin)"}
    logger.info("Engine: %s, because %s.", names[BACKEND], BACKEND_REASON)


__all__ = [
    "BACKEND",
    "BACKEND_REASON",
    "META_ARCH_REGISTRY",
    "CfgNode",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DetectionCheckpointer",
    "EventStorage",
    "EventWriter",
    "HookBase",
    "MetadataCatalog",
    "TensorboardXWriter",
    "TrainerBase",
    "broadcast",
    "build_model",
    "comm",
    "default_argument_parser",
    "forget_groups",
    "forget_log_files",
    "get_cfg",
    "get_event_storage",
    "hooks",
    "launch",
    "log_backend",
    "setup_logger",
    "verify_results",
]
