"""Runs one worker of `tools/train_net.py`: evaluates, or trains and evaluates."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from torch import nn

from san.d2.api import CfgNode, comm, verify_results
from san.d2.checkpoints.checkpointer import run_of, starting_weights
from san.d2.checkpoints.run_folder import check_kinds, check_weights_stay, make_folder, occupied, write_config
from san.d2.config.world_size import scale_to_processes
from san.d2.data.datasets import prepare_datasets
from san.d2.evaluate.averaging import FOLDER, SUFFIX, augmented, check_averaging, side_by_side
from san.d2.evaluate.evaluation import evaluate, summary
from san.d2.evaluate.evaluator import metric_names
from san.d2.processes import stopping
from san.d2.processes.launcher import setup_run
from san.d2.sources import load_ensemble_model, load_model
from san.d2.train.across_processes import check_same_settings, from_main
from san.d2.train.trainer import Trainer
from san.inference.ensemble import is_ensemble_file
from san.io.errors import USER_ERRORS, one_line
from san.user_modules import import_modules

logger = logging.getLogger("san.d2.run")


def run(
    cfg: CfgNode,
    *,
    eval_only: bool = False,
    resume: bool = False,
    keep_weights: bool = False,
    move_aside: bool = False,
) -> dict[str, dict[str, float]]:
    """Run one worker.

    Args:
        cfg: configuration of `san.d2.config.keys.load_config`.
        eval_only: evaluate MODEL.WEIGHTS, or with ``resume`` the latest checkpoint, without training.
        resume: resume from the latest checkpoint in OUTPUT_DIR, and resume an interrupted evaluation, if there is one.
        keep_weights: with ``eval_only`` and ``resume``, still evaluate MODEL.WEIGHTS if it is set.
        move_aside: move an existing run in OUTPUT_DIR to a new folder next to it.

    Returns:
        On the main process the metrics in percent by data set, elsewhere an empty dict.

    Raises:
        ValueError, FileNotFoundError, FloatingPointError: an error in the configuration, data or checkpoint.
        SystemExit: status 1 if TEST.EXPECTED_RESULTS are not reached, 75 after SIGTERM or SIGUSR1.
    """
    import_modules(cfg.MODEL.IMPORTS)  # a spawned process starts without them
    if move_aside and (eval_only or resume):
        raise ValueError("--move-aside makes room for a new run; leave it out with --resume and --eval-only")
    modes = {"--eval-only": eval_only, "--resume": resume, "--move-aside": move_aside}
    check_same_settings(cfg, modes)
    folder = Path(cfg.OUTPUT_DIR)
    with contextlib.ExitStack() as held:
        if eval_only:
            from_main(lambda: make_folder(folder))
            from_main(lambda: check_kinds(folder))
        else:
            if move_aside:
                from_main(lambda: check_weights_stay(cfg.MODEL.WEIGHTS, folder))
            from_main(lambda: held.enter_context(occupied(folder, resume=resume, move_aside=move_aside)))
        setup_run(cfg)
        try:
            if not eval_only:
                cfg = scale_to_processes(cfg, comm.get_world_size())
            with stopping.recording_signals():
                latest = resume and not (eval_only and keep_weights and cfg.MODEL.WEIGHTS)
                return _run(cfg, eval_only=eval_only, resume=resume, latest=latest)
        except Exception as error:
            trace = not isinstance(error, USER_ERRORS)
            logger.error(
                "Process %d of %d ends: %s", comm.get_rank(), comm.get_world_size(), one_line(error), exc_info=trace
            )
            raise


def _run(cfg: CfgNode, *, eval_only: bool, resume: bool, latest: bool) -> dict[str, dict[str, float]]:
    """Run with logs and seeds set up; ``latest`` prefers the latest checkpoint to MODEL.WEIGHTS."""
    cfg = cfg.clone()
    cfg.defrost()
    given, folder = cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR
    cfg.MODEL.WEIGHTS = from_main(lambda: starting_weights(given, folder, resume=latest))
    cfg.freeze()
    check_averaging(cfg, training=not eval_only)
    prepare_datasets(cfg, training=not eval_only)
    check_expected(cfg)
    if eval_only:
        results = evaluate_only(cfg, resume=resume)
    else:
        trainer = Trainer(cfg, from_main(lambda: run_of(folder) if resume else ""))
        trainer.resume_or_load(resume=resume)
        trainer.train()
        results = with_augmentation(cfg, trainer.san, trainer.results, training=True)
    missed = comm.is_main_process() and not as_expected(cfg, results)
    if comm.all_gather(missed)[0]:  # all processes exit together
        raise SystemExit(1)
    return results


def evaluate_only(cfg: CfgNode, *, resume: bool = False) -> dict[str, dict[str, float]]:
    """Evaluate MODEL.WEIGHTS on DATASETS.TEST.

    Args:
        cfg: the configuration.
        resume: resume an interrupted evaluation of the same weights.

    Raises:
        ValueError: there is no data set, or there are no weights.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty, so there is nothing to evaluate; name data sets")
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "--eval-only needs weights: set MODEL.WEIGHTS to a checkpoint, or give --resume to take the latest one of "
            f"OUTPUT_DIR {cfg.OUTPUT_DIR}"
        )
    model = load_ensemble_model(cfg) if is_ensemble_file(cfg.MODEL.WEIGHTS) else load_model(cfg)
    if comm.is_main_process():
        write_config(Path(cfg.OUTPUT_DIR) / "inference", cfg)
    return with_augmentation(cfg, model, evaluate(cfg, model, resume=resume), resume=resume)


def with_augmentation(
    cfg: CfgNode,
    model: nn.Module,
    plain: dict[str, dict[str, float]],
    *,
    resume: bool = False,
    training: bool = False,
) -> dict[str, dict[str, float]]:
    """Evaluate again with TEST.AUG, averaged over scales and mirror images; only if TEST.AUG.ENABLED is set.

    Writes reports to ``OUTPUT_DIR/inference_TTA/<data set>``, and both results to ``side_by_side.csv`` next to them.

    Args:
        cfg: the configuration.
        model: the evaluated model.
        plain: its result of `evaluate`.
        resume: see `evaluate`.
        training: see `evaluate`.

    Returns:
        The plain metrics, and those with TEST.AUG under the data sets' names with the suffix "_TTA".
    """
    if not cfg.TEST.AUG.ENABLED or not comm.all_gather(bool(plain))[0]:
        return plain
    sides = ", ".join(map(str, cfg.TEST.AUG.MIN_SIZES))
    logger.info("TEST.AUG: evaluating again at short sides %s%s", sides, ", and mirrored" if cfg.TEST.AUG.FLIP else "")
    averaged = cfg.clone()
    averaged.defrost()
    averaged.TEST.ORACLE = False  # only without TEST.AUG, as proposals of several sizes have no common grid
    averaged.freeze()
    found = evaluate(averaged, augmented(cfg, model), resume=resume, training=training, folder=FOLDER)
    if found:
        logger.info("with and without TEST.AUG:\n%s", side_by_side(Path(cfg.OUTPUT_DIR) / FOLDER, plain, found))
    return {**plain, **{name + SUFFIX: values for name, values in found.items()}}


def check_expected(cfg: CfgNode) -> None:
    """Check, before training starts, that expected results and selection metrics will be computed.

    Raises:
        ValueError: one names a data set that is not evaluated, or a metric that it does not have; or early stopping
            is enabled without a metric or without evaluations during training.
    """
    names = list(dict.fromkeys(cfg.DATASETS.TEST))
    alias = {"sem_seg": names[0]} if len(names) == 1 else {}
    alias |= {name + SUFFIX: name for name in names if cfg.TEST.AUG.ENABLED}
    ensemble = is_ensemble_file(cfg.MODEL.WEIGHTS)
    for entry in cfg.TEST.EXPECTED_RESULTS:
        dataset = alias.get(entry[0], entry[0])
        averaged = ensemble or (entry[0] not in names and entry[0] != "sem_seg")
        if dataset not in names or entry[1] not in metric_names(dataset, averaged=averaged):
            raise ValueError(
                f"TEST.EXPECTED_RESULTS holds {list(entry)}; give [data set, metric, value, tolerance], a data set of "
                f"DATASETS.TEST ({', '.join([*names, *alias]) or 'which is empty'}) and a metric such as mIoU"
            )
    stop = cfg.SOLVER.EARLY_STOP
    for key, best, needed in (
        ("CHECKPOINT_BEST", cfg.SOLVER.CHECKPOINT_BEST, False),
        ("EARLY_STOP.METRIC", stop.METRIC, stop.PATIENCE > 0),
    ):
        dataset, _, metric = best.partition("/")
        if (best or needed) and (dataset not in names or metric not in metric_names(dataset)):
            raise ValueError(
                f"SOLVER.{key} is {best!r}; give a data set of DATASETS.TEST "
                f"({', '.join(names) or 'which is empty'}), a slash and a metric, such as {(names or ['set'])[0]}/mIoU"
            )
    if stop.PATIENCE and not cfg.TEST.EVAL_PERIOD:
        raise ValueError(
            f"SOLVER.EARLY_STOP.PATIENCE is {stop.PATIENCE}, but TEST.EVAL_PERIOD is 0, so nothing is evaluated before "
            "the end; set the latter to the iterations between evaluations"
        )


def as_expected(cfg: CfgNode, results: dict[str, dict[str, float]]) -> bool:
    """Whether results match TEST.EXPECTED_RESULTS, in which ``sem_seg`` may be the name of a single data set."""
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return True
    names = {*cfg.DATASETS.TEST}
    full = results | {"sem_seg": results[cfg.DATASETS.TEST[0]]} if len(names) == 1 else results
    shown = {name: values for name, values in summary(full).items() if any(name == entry[0] for entry in expected)}
    for name, metric, *_ in expected:
        shown[name][metric] = full[name][metric]
    try:
        verify_results(cfg, shown)
    except SystemExit:  # already logged
        return False
    return True
