"""SAN's training recipe as methods that a subclass of Detectron2's ``DefaultTrainer`` overrides.

Define ``class Trainer(SANRecipe, DefaultTrainer): pass``. The whole script is in docs/detectron2.md.
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
from san.d2.evaluate.evaluation import eval_loader, eval_records, output_config
from san.d2.evaluate.evaluator import SemSegEvaluator
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
    """Mixin for ``DefaultTrainer`` with the optimiser, schedule, data and evaluation of `san train`.

    Every method can be overridden, or called from the method of the same name of another trainer.
    """

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Return AdamW that clips the gradient of the whole model before each step.

        Raises:
            ValueError: a value is out of range, or SOLVER.ACCUMULATION_STEPS is set.
        """
        warn_without_effect(cfg, "SOLVER")
        _check_loop(cfg)
        config = solver_config(cfg)
        optimizer = build_optimizer(model, config)
        optimizer.register_step_pre_hook(functools.partial(_clip, config))
        # otherwise a GradScaler would let the step unscale the gradient, after clipping
        optimizer._step_supports_amp_scaling = False
        return optimizer

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the schedule of SOLVER.LR_SCHEDULER_NAME; the default is polynomial without warm-up."""
        return build_lr_scheduler(optimizer, solver_config(cfg))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainStream:
        """Return the training samples of DATASETS.TRAIN; SEED determines their order and augmentation."""
        warn_without_effect(cfg, "INPUT", "DATALOADER", "DATASETS", "VIS_PERIOD")
        return TrainStream(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Batches:
        """Return the images of a data set that this process evaluates, one at a time."""
        warn_without_effect(cfg, "TEST")
        return eval_loader(cfg, dataset_name, eval_records(cfg, dataset_name)[0])

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> SemSegEvaluator:
        """Return an evaluator that writes its report to ``OUTPUT_DIR/inference/<data set>``."""
        folder, subset = Path(cfg.OUTPUT_DIR) / "inference" / dataset_name, eval_records(cfg, dataset_name)[1]
        if subset:
            logger.warning("%s: %s (DATASETS.TEST_SUBSET), no figure of the benchmark", dataset_name, subset)
        return SemSegEvaluator(dataset_name, output_config(cfg, folder, subset))

    def resume_or_load(self: Any, resume: bool = True) -> None:
        """Load weights as ``DefaultTrainer`` does; MODEL.WEIGHTS may also be a folder or a safetensors file."""
        if self.cfg.MODEL.WEIGHTS and not (resume and self.checkpointer.has_checkpoint()):
            SANCheckpointer(self.model).load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
        else:
            super().resume_or_load(resume)  # type: ignore[misc]

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        """Load a state of ``DefaultTrainer`` or `san train`; rates and decays come from the configuration.

        Raises:
            ValueError: training cannot resume from it; nothing is changed.
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
    """Training batches from the current iteration at the first access, so that a resumed run continues its stream.

    Samples that cannot be read are replaced and counted as in `san train`.

    Args:
        cfg: the configuration.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.data = training_data(cfg)
        self.stream = stream_config(cfg)
        self.bad_data = BadData(len(self.data.records), cfg.DATALOADER.MAX_BAD_SHARE, Path(cfg.OUTPUT_DIR))

    def __iter__(self) -> Iterator[list[BatchSample]]:
        """Yield lists of samples, inside the trainer's event storage; every process must take the same number."""
        stream = replace(self.stream, start_iter=get_event_storage().iter)
        batches = train_batches(self.cfg, self.data, stream)
        for batch in batches:
            found = comm.all_gather(batches.take_replaced())
            self.bad_data.note(bad for each in found for bad in each)
            yield batch


def _clip(config: SolverConfig, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Clip the gradient; the optimiser calls this hook before its step."""
    clip_gradient(optimizer, config)


def _check_loop(cfg: CfgNode) -> None:
    """Raise or warn if options are set that Detectron2's loop does not support."""
    if cfg.SOLVER.ACCUMULATION_STEPS != 1:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS is {cfg.SOLVER.ACCUMULATION_STEPS}, but Detectron2's trainer does not "
            "accumulate; set it to 1, or train with `san train`"
        )
    given, defaults = dict(flatten(cfg)), dict(flatten(san_cfg()))
    unread = [key for key in OWN_LOOP if given[key] != defaults[key] and (cfg.SOLVER.AMP.ENABLED or "AMP" not in key)]
    if unread:
        logger.warning("Detectron2's trainer does not read %s, which `san train` does", ", ".join(unread))
