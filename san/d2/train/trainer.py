"""The training run: model, data, optimiser, checkpoints, evaluation and logs on Detectron2's loop of hooks."""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from san.d2.api import CfgNode, EventStorage, HookBase, TrainerBase, build_model, comm, hooks
from san.d2.checkpoints.checkpointer import SANCheckpointer, latest_checkpoint
from san.d2.checkpoints.run_folder import CONFIG, new_run_id, record_start
from san.d2.checkpoints.trainer_state import (
    check_finite_run,
    check_trainer_state,
    flat_state,
    load_optimizer,
    load_scaler,
    log_changes,
    own_hooks,
    recorded_settings,
    set_schedule,
)
from san.d2.config.checks import AMP_DTYPES
from san.d2.config.keys import solver_config
from san.d2.data.bad_data import BadData
from san.d2.data.batches import Batches, BatchSample
from san.d2.data.datasets import check_distinct_classes, check_names, load_records
from san.d2.data.train_data import stream_config, train_batches, training_data
from san.d2.evaluate.evaluation import evaluate, summary
from san.d2.processes import stopping
from san.d2.solver import build_lr_scheduler, build_optimizer
from san.d2.train.across_processes import check_same_weights, distribute, from_main, load_everywhere
from san.d2.train.checkpoint_hooks import BestCheckpointHook, CheckpointHook, last_done
from san.d2.train.early_stop import EarlyStopHook
from san.d2.train.iteration import NonFiniteError, StepConfig, Stepper
from san.d2.train.iteration_log import IterationLog, sources_of
from san.d2.train.metrics_file import NAME as METRICS
from san.d2.train.metrics_file import LineHook, MetricsFile, evaluated_at, take_out
from san.d2.train.run_hooks import CurvesHook, LossReadingEvalHook, ReadsLosses
from san.d2.train.weight_average import WeightAverage
from san.d2.train.writers import build_writers
from san.devices import computes_bfloat16

logger = logging.getLogger("san.d2.trainer")


class Trainer(TrainerBase):
    """Training run of a configuration; call `resume_or_load`, then `train`.

    Args:
        cfg: the configuration; not changed.
        run_id: id of the run, written into its checkpoints; "" makes a new one.

    Raises:
        ValueError, FileNotFoundError: the configuration or its data is missing or invalid.
    """

    iter: int
    """The current iteration, from 0; MAX_ITER when training is complete."""

    def __init__(self, cfg: CfgNode, run_id: str = "") -> None:
        super().__init__()
        self.cfg = cfg
        self.run_id = run_id or new_run_id()
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.data = training_data(cfg)
        self.stream = stream_config(cfg)
        check_names(cfg.DATASETS.TEST, "DATASETS.TEST")
        for name in cfg.DATASETS.TEST:
            load_records(name)  # so that a missing folder is found before training, not after hours
            check_distinct_classes(name)
        self.san: nn.Module = build_model(cfg)
        self.san.train()
        self.optimizer = self.build_optimizer()
        distributed = distribute(self.san, find_unused=cfg.SOLVER.FIND_UNUSED_PARAMETERS)
        self.average = WeightAverage(self.san, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        self.stepper = Stepper(distributed, self.optimizer, step_config(cfg), self.average)
        self.saved: dict[str, Any] = {"trainer": weakref.proxy(self)} | ({"ema": self.average} if self.average else {})
        self.checkpointer = SANCheckpointer(self.san, cfg.OUTPUT_DIR, run_id=self.run_id, **self.saved)
        folder = Path(cfg.OUTPUT_DIR)
        self.bad_data = BadData(len(self.data.records), cfg.DATALOADER.MAX_BAD_SHARE, folder)
        self.log = IterationLog(self.san, cfg.SOLVER.MAX_NONFINITE, folder, seed=lambda: self.stream.seed)
        self.saving = CheckpointHook(
            self.checkpointer,
            cfg.SOLVER.CHECKPOINT_PERIOD,
            keep=cfg.SOLVER.CHECKPOINT_KEEP or None,
            sound=self.log.is_sound,
            check=lambda done: check_finite_run(self.san, self.optimizer, done),
        )
        self.results: dict[str, dict[str, float]] = {}
        stop = cfg.SOLVER.EARLY_STOP
        self.early_stop = EarlyStopHook(stop.METRIC, stop.PATIENCE, lambda: self.results) if stop.PATIENCE else None
        self.resumed = False
        self._evaluated = False
        self._loader: Batches | None = None
        self._batches: Iterator[list[BatchSample]] = iter(())
        self.register_hooks(self.build_hooks())
        trained = sum(p.numel() for p in self.san.parameters() if p.requires_grad)
        names = ", ".join(self.data.infos)
        logger.info("%d images of %s; %d parameters trained", len(self.data.records), names, trained)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser of ``self.san``, by default AdamW with the groups of SOLVER.PARAM_RULES.

        It is called once, before the model is wrapped for distributed training. A subclass may freeze parameters and
        return another optimiser.
        """
        return build_optimizer(self.san, solver_config(self.cfg))

    def build_hooks(self) -> list[HookBase]:
        """Return timer, schedule, metrics, checkpoints, evaluation, logs and curves, in their required order."""
        cfg, period = self.cfg, self.cfg.SOLVER.LOG_PERIOD
        self.scheduler = build_lr_scheduler(self.optimizer, solver_config(cfg))
        found: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler(self.optimizer, self.scheduler)]
        metrics = MetricsFile(Path(cfg.OUTPUT_DIR) / METRICS, period)
        # before the checkpoint of its iteration, otherwise a kill between the two loses a line
        found.append(LineHook(metrics if comm.is_main_process() else None, period))
        found.append(self.saving)
        if cfg.DATASETS.TEST:
            found.append(LossReadingEvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
        if self.early_stop:
            found.append(self.early_stop)
        if cfg.SOLVER.CHECKPOINT_BEST:
            found.append(BestCheckpointHook(self.checkpointer, cfg.SOLVER.CHECKPOINT_BEST, lambda: self.results))
        if comm.is_main_process():
            found.append(hooks.PeriodicWriter(build_writers(cfg, self.max_iter, metrics, self.run_id), period=period))
            found.append(CurvesHook(Path(cfg.OUTPUT_DIR)))
        return found

    def _evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluate the current weights, or their average, on DATASETS.TEST; return the metrics for curves."""
        self._evaluated = True
        with self.average.applied() if self.average else contextlib.nullcontext():
            self.results = evaluate(self.cfg, self.san, resume=self.resumed, training=True)
        return summary(self.results)

    def resume_or_load(self, resume: bool) -> None:
        """Resume from the latest checkpoint of OUTPUT_DIR if there is one and `resume` is set, else load MODEL.WEIGHTS.

        The main process finds and reads the checkpoint, and sends its content to the others.

        Args:
            resume: whether to look for a checkpoint.
        """
        found = from_main(lambda: str(latest_checkpoint(self.cfg.OUTPUT_DIR) or "")) if resume else ""
        if found:
            load_everywhere(self.checkpointer, found, [*self.saved])
            self.resumed = True
            self.start_iter = self.iter + 1
            logger.info("Resuming at iteration %d of %d.", self.start_iter, self.max_iter)
        elif self.cfg.MODEL.WEIGHTS:
            load_everywhere(self.checkpointer, self.cfg.MODEL.WEIGHTS)
        else:
            logger.info("The side network starts from fresh weights.")
        check_same_weights(self.san)
        if self.average and not self.average.updates:  # the checkpoint has no average, or there is no checkpoint
            self.average.reset()
            logger.info("Evaluations use the moving average of the weights (SOLVER.EMA), from here on.")
        if resume and comm.is_main_process():
            take_out(Path(self.cfg.OUTPUT_DIR) / METRICS, self.start_iter, self.max_iter)

    def train(self) -> None:  # type: ignore[override]
        """Train from ``start_iter`` to ``max_iter``, then evaluate; SOLVER.EARLY_STOP may end training earlier.

        Unlike in the base class, an error is not logged with its traceback, and after it only the writers run.
        """
        self.iter = self.start_iter
        folder = Path(self.cfg.OUTPUT_DIR)
        if comm.is_main_process() and (self.start_iter < self.max_iter or not (folder / CONFIG).is_file()):
            record_start(folder, self.run_id, self.cfg)
        with EventStorage(self.start_iter) as self.storage:
            try:
                self.before_train()
                self._run_missed_evaluation()
                for iteration in range(self.start_iter, self.max_iter):
                    if self.early_stop and self.early_stop.due:
                        self._end_early(iteration - 1)
                        break
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                else:
                    self.iter = max(self.start_iter, self.max_iter)  # signals hooks that training is complete
                self.after_train()
                self._check_end()
            except stopping.StopRequested:  # raised between two iterations, or in an evaluation
                self._stop()
                raise
            except BaseException:
                self._close_writers()
                raise
            finally:
                self._batches = iter(())  # ends the loading processes

    def _next_batches(self) -> list[list[BatchSample]]:
        """Return the batches of an iteration, one per accumulation step; every process must call it.

        Raises:
            StopRequested: a stop of any process was requested, in the previous iteration or while waiting for the
                batches; this iteration has not started.
            ValueError: too many samples cannot be read.
        """
        assert self._loader is not None
        batches: list[list[BatchSample]] = []
        with contextlib.suppress(stopping.StopRequested):  # the other processes are notified below
            batches = [next(self._batches) for _ in range(self.stream.accumulation)]
        gathered = comm.all_gather((stopping.requested(), self._loader.take_replaced()))
        if any(stop for stop, _ in gathered):
            self.iter = self.storage.iter = self.iter - 1
            raise stopping.StopRequested
        self.bad_data.note(bad for _, found in gathered for bad in found)
        return batches

    def _end_early(self, done: int) -> None:
        """End training at an iteration; a resumed run that had already ended there is evaluated again."""
        assert self.early_stop is not None
        self.iter = self.storage.iter = done
        logger.info(
            "Training ends early, after iteration %d of %d: %s has not risen above %.2f in %d evaluations. A larger "
            "SOLVER.EARLY_STOP.PATIENCE with --resume continues it.",
            done,
            self.max_iter,
            self.early_stop.name,
            self.early_stop.best,
            self.early_stop.since,
        )
        self.saving.finish()  # before the writers close, as one may log the checkpoint
        if not self._evaluated:
            self._evaluate()

    def _run_missed_evaluation(self) -> None:
        """Run the evaluation that was due at the checkpoint's iteration, if the previous run ended before it."""
        last, period = self.start_iter - 1, self.cfg.TEST.EVAL_PERIOD
        due = self.resumed and self.cfg.DATASETS.TEST and period and self.start_iter % period == 0
        if not due or self.start_iter >= self.max_iter:
            return
        metrics = Path(self.cfg.OUTPUT_DIR) / METRICS
        found = from_main(lambda: evaluated_at(metrics, last, self.cfg.DATASETS.TEST))
        if found and self.early_stop and self.early_stop.name in found:  # the checkpoint may be older than this line
            self.early_stop.count(found[self.early_stop.name], last)
        if found and (not self.early_stop or self.early_stop.iteration >= last):
            return
        logger.info("The evaluation due at iteration %d was not completed; it runs now.", last)
        self.iter = self.storage.iter = last
        for name, values in self._evaluate().items():
            self.storage.put_scalars(**{f"{name}/{key}": v for key, v in values.items()}, smoothing_hint=False)
        comm.synchronize()
        for hook in self._hooks:
            if isinstance(hook, (BestCheckpointHook, EarlyStopHook)):
                hook.after_step()

    def _check_end(self) -> None:
        """Raise on every process if the last checkpoint does not exist."""
        reason = self.checkpointer.failure if comm.is_main_process() and not self.saving.finish() else ""
        reason = comm.all_gather(reason)[0]
        if reason:
            raise OSError(
                f"model_final.pth is not written ({reason}); {self._last_complete_checkpoint()}. Make room, then give "
                "the same command with --resume"
            )

    def _last_complete_checkpoint(self) -> str:
        """Describe the checkpoint from which a run without its last one can be resumed."""
        try:
            whole = latest_checkpoint(self.cfg.OUTPUT_DIR)
        except ValueError as error:
            return str(error)
        return "there is no earlier checkpoint, so it starts again" if whole is None else f"{whole} is complete"

    def _stop(self) -> None:
        """Save the state from which the run can be resumed."""
        try:
            self.log.settle()
            if last_done(self) < 0:
                logger.warning("Asked to stop before the first iteration was done; there is nothing to save.")
                self._close_writers()
                return
            saved = self.saving.save_now()
        except FloatingPointError:
            self._close_writers()
            raise
        logger.warning(
            "Asked to stop: ends %s iteration %d. The same command with --resume continues it.",
            "with a checkpoint of" if saved else "WITHOUT a checkpoint of",
            last_done(self),
        )
        self._close_writers()
        comm.synchronize()  # a process that ends would end the others, so all wait until the main one has written

    def _close_writers(self) -> None:
        """Write what was logged if training ends early. Raises nothing, so that the original error is reported."""
        self.log.close()
        for hook in self._hooks:
            if not isinstance(hook, hooks.PeriodicWriter):
                continue
            try:
                hook.after_train()
            except ValueError:
                logger.debug("The logs were closed before the error.")
            except Exception as error:
                logger.warning("After the error the logs could not be completed: %s", error)

    def before_train(self) -> None:
        """Open the sample stream at the first iteration of this run."""
        self._loader = self._train_loader()
        self._batches = iter(self._loader)
        super().before_train()

    def _train_loader(self) -> Batches:
        stream = replace(self.stream, start_iter=min(self.start_iter, self.max_iter))
        return train_batches(self.cfg, self.data, stream)

    def run_step(self) -> None:
        """Run one iteration; if a loss or gradient is not finite, the update is skipped.

        Its losses are logged during the next iteration, unless a hook reads them earlier (see `ReadsLosses`).
        """
        start = time.perf_counter()
        batches = self._next_batches()
        data_time, sources = time.perf_counter() - start, sources_of(batches)
        try:
            losses = self.stepper.run(batches, self.iter, self.log.settle)
        except NonFiniteError as error:
            self.log.settle()
            self.log.skip(self.iter, error, sources)
            return
        self.log.add(losses, sources, data_time)
        done = self.iter + 1
        if done == self.max_iter or any(
            isinstance(hook, ReadsLosses) and hook.reads_losses(done) for hook in self._hooks
        ):
            self.log.settle()

    def state_dict(self) -> dict[str, Any]:
        """Return the state without weights: iteration, schedule, optimiser, loss scaling, seed of the sample stream."""
        state: dict[str, Any] = super().state_dict()
        return state | {
            "iteration": last_done(self),
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.stepper.scaler.state_dict(),
            "seed": self.stream.seed,
            "solver": recorded_settings(self.cfg),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of `state_dict`, or of Detectron2's ``DefaultTrainer`` with `san.d2.recipe.SANRecipe`.

        Learning rate, schedule and weight decay come from the configuration.

        Raises:
            ValueError: see `check_state_dict`.
        """
        self.check_state_dict(state_dict)
        content = flat_state(state_dict)
        hooks = own_hooks(self._hooks, content["hooks"])
        super().load_state_dict({"iteration": content["iteration"], "hooks": hooks})
        load_optimizer(self.optimizer, content["optimizer"])
        set_schedule(self.scheduler, content["iteration"] + 1)
        load_scaler(self.stepper.scaler, content["grad_scaler"])
        if self.cfg.SEED < 0:
            self.stream = replace(self.stream, seed=content.get("seed", self.stream.seed))
        log_changes(content["solver"], recorded_settings(self.cfg))

    def check_state_dict(self, state: object) -> None:
        """Check that `load_state_dict` can load a state; changes nothing.

        Raises:
            ValueError: the state does not fit; the message gives the reason.
        """
        check_trainer_state(state, self.san, self.optimizer, recorded_settings(self.cfg))


def step_config(cfg: CfgNode) -> StepConfig:
    """Return the options of an iteration of a run.

    An x86 CPU without bfloat16 instructions computes in float32, because half precision takes it 10 times as long.
    """
    device, amp, dtype = torch.device(cfg.MODEL.DEVICE), bool(cfg.SOLVER.AMP.ENABLED), cfg.SOLVER.AMP.DTYPE
    if amp and not computes_bfloat16(device):
        logger.warning("On this CPU float32 is faster than half precision: it replaces SOLVER.AMP.DTYPE %s.", dtype)
        amp = False
    return StepConfig(
        solver=solver_config(cfg),
        device=device.type,
        amp_dtype=AMP_DTYPES[dtype] if amp else None,
        num_queries=cfg.MODEL.SIDE_ADAPTER.NUM_QUERIES,
        no_object_weight=cfg.MODEL.LOSS.NO_OBJECT_WEIGHT,
        find_unused=cfg.SOLVER.FIND_UNUSED_PARAMETERS,
    )
