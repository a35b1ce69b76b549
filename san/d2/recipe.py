"""SAN's recipe for a script of Detectron2: what its ``DefaultTrainer`` asks a subclass for.

``class Trainer(SANRecipe, DefaultTrainer): pass`` is such a subclass; docs/detectron2.md has the whole script.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from san.d2.api import CfgNode, comm, get_event_storage
from san.d2.checkpoints.checkpointer import SANCheckpointer
from san.d2.checkpoints.trainer_state import check_trainer_state, flat_state, own_hooks, recorded_settings, set_schedule
from san.d2.config.keys import san_cfg, solver_config
from san.d2.config.yaml_file import flatten, warn_without_effect
from san.d2.data.bad_data import BadData
from san.d2.data.batches import Batches, BatchSample
from san.d2.data.train_data import stream_config, train_batches, training_data
from san.d2.evaluate.evaluation import SemSegEvaluator, eval_loader, eval_records, output_config
from san.d2.solver import SolverConfig, build_lr_scheduler, build_optimizer, clip_gradient

logger = logging.getLogger("san.d2.recipe")

OWN_LOOP = (
    "DETERMINISTIC",
    "SOLVER.AMP.DTYPE",
    "SOLVER.CHECKPOINT_BEST",
    "SOLVER.CHECKPOINT_KEEP",
    "SOLVER.EARLY_STOP.PATIENCE",
    "SOLVER.EMA.ENABLED",
    "SOLVER.LOG_PERIOD",
    "SOLVER.MAX_NONFINITE",
    "TEST.AUG.ENABLED",
    "TEST.LOG_REPORTS",
    "WANDB.ENABLED",
)
"""Keys that SAN's own trainer reads and Detectron2's does not."""


class SANRecipe:
    """Optimiser, schedule, data and evaluation as `san train` has them, for a subclass of ``DefaultTrainer``.

    Every method can be overridden, or called from another trainer's method of its name.
    """

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW that clips the gradient of the whole model before each step.

        Raises:
            ValueError: a value is out of range, or SOLVER.ACCUMULATION_STEPS is set.
        """
        warn_without_effect(cfg, "SOLVER")
        _check_loop(cfg)
        config = solver_config(cfg)
        optimizer = build_optimizer(model, config)
        optimizer.register_step_pre_hook(functools.partial(_clip, config))
        # else a GradScaler would leave it to the step to unscale the gradient, after the clipping
        optimizer._step_supports_amp_scaling = False
        return optimizer

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """The schedule of SOLVER.LR_SCHEDULER_NAME: polynomial without warm-up by default."""
        return build_lr_scheduler(optimizer, solver_config(cfg))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainStream:
        """The training samples of DATASETS.TRAIN, augmented and ordered as SEED says."""
        warn_without_effect(cfg, "INPUT", "DATALOADER", "DATASETS", "VIS_PERIOD")
        return TrainStream(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Batches:
        """The images of a data set that this process evaluates, one at a time."""
        warn_without_effect(cfg, "TEST")
        return eval_loader(cfg, dataset_name, eval_records(cfg, dataset_name)[0])

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> SemSegEvaluator:
        """Writes its report to ``OUTPUT_DIR/inference/<data set>``."""
        folder, subset = Path(cfg.OUTPUT_DIR) / "inference" / dataset_name, eval_records(cfg, dataset_name)[1]
        if subset:
            logger.warning("%s: %s (DATASETS.TEST_SUBSET), no figure of the benchmark", dataset_name, subset)
        return SemSegEvaluator(dataset_name, output_config(cfg, folder, subset))

    def resume_or_load(self: Any, resume: bool = True) -> None:
        """As ``DefaultTrainer``'s; MODEL.WEIGHTS may also be a folder or a file of safetensors."""
        if self.cfg.MODEL.WEIGHTS and not (resume and self.checkpointer.has_checkpoint()):
            SANCheckpointer(self.model).load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
        else:
            super().resume_or_load(resume)  # type: ignore[misc]

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        """As ``DefaultTrainer``'s, also of a checkpoint of `san train`; rates and decays are the configuration's.

        Raises:
            ValueError: it is none that training can go on from; nothing has changed then.
        """
        content, optimizer = flat_state(state_dict), self._trainer.optimizer
        if type(optimizer) is torch.optim.AdamW:
            check_trainer_state(state_dict, self.model, optimizer, recorded_settings(self.cfg))
            groups = optimizer.state_dict()["param_groups"]
            content["optimizer"] = {"state": content["optimizer"]["state"], "param_groups": groups}
        hooks, inner = content.pop("hooks"), content | {"hooks": {}}
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LambdaLR):
            hooks = own_hooks(self._hooks, hooks)
        if hasattr(self._trainer, "grad_scaler"):
            inner["grad_scaler"] = content["grad_scaler"] or self._trainer.grad_scaler.state_dict()
        super().load_state_dict({"_trainer": inner, "hooks": hooks, "iteration": content["iteration"]})  # type: ignore[misc]
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LambdaLR):
            set_schedule(self.scheduler, content["iteration"] + 1)


class TrainStream:
    """Training batches from the iteration on at which they are first asked for: a resumed run goes on with its own.

    Samples that cannot be read are replaced and counted as in `san train`.

    Args:
        cfg: the run.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.data = training_data(cfg)
        self.stream = stream_config(cfg)
        self.bad_data = BadData(len(self.data.records), cfg.DATALOADER.MAX_BAD_SHARE, Path(cfg.OUTPUT_DIR))

    def __iter__(self) -> Iterator[list[BatchSample]]:
        """Yields lists of samples, inside the trainer's event storage; every process must ask for as many."""
        stream = replace(self.stream, start_iter=get_event_storage().iter)
        batches = train_batches(self.cfg, self.data, stream)
        for batch in batches:
            found = comm.all_gather(batches.take_replaced())
            self.bad_data.note(bad for each in found for bad in each)
            yield batch


def _clip(config: SolverConfig, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Called by an optimiser before its step."""
    clip_gradient(optimizer, config)


def _check_loop(cfg: CfgNode) -> None:
    """Refuses, or warns about, what Detectron2's loop cannot do."""
    if cfg.SOLVER.ACCUMULATION_STEPS != 1:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS is {cfg.SOLVER.ACCUMULATION_STEPS}, but Detectron2's trainer does not "
            "accumulate; set it to 1, or train with `san train`"
        )
    given, defaults = dict(flatten(cfg)), dict(flatten(san_cfg()))
    unread = [key for key in OWN_LOOP if given[key] != defaults[key] and (cfg.SOLVER.AMP.ENABLED or "AMP" not in key)]
    if unread:
        logger.warning("Detectron2's trainer does not read %s, which `san train` does", ", ".join(unread))
