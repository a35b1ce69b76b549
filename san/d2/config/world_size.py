"""SOLVER.REFERENCE_WORLD_SIZE: scales a configuration from this number of processes to another.

As in Detectron2's ``DefaultTrainer.auto_scale_workers``, the batch size per process is kept, and the learning rate is
proportional to the total batch size (linear scaling, Goyal et al. 2017).
"""

from __future__ import annotations

import logging

from san.d2.api import CfgNode
from san.d2.config.keys import check_config

PERIODS = (("SOLVER", "CHECKPOINT_PERIOD"), ("TEST", "EVAL_PERIOD"))

logger = logging.getLogger("san.d2.config")


def scale_to_processes(cfg: CfgNode, processes: int) -> CfgNode:
    """Scale a configuration; returns `cfg` itself if SOLVER.REFERENCE_WORLD_SIZE is 0 or equals `processes`.

    Args:
        cfg: not changed.
        processes: number of training processes.

    Returns:
        IMS_PER_BATCH and BASE_LR multiplied by processes / REFERENCE_WORLD_SIZE, and MAX_ITER, WARMUP_ITERS,
        CHECKPOINT_PERIOD and TEST.EVAL_PERIOD divided by it, rounded; EMA.DECAY to its power.
        REFERENCE_WORLD_SIZE is set to `processes`, so that the result is not scaled again.

    Raises:
        ValueError: IMS_PER_BATCH cannot be divided by REFERENCE_WORLD_SIZE, or a scaled value is out of range.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, processes):
        return cfg
    if cfg.SOLVER.IMS_PER_BATCH % reference:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH} and cannot be divided by SOLVER.REFERENCE_WORLD_SIZE "
            f"{reference}; set the latter to the number of processes that the batch is meant for, or to 0"
        )
    scaled, scale = cfg.clone(), processes / reference
    scaled.defrost()
    solver = scaled.SOLVER
    solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
    solver.BASE_LR = solver.BASE_LR * scale
    solver.MAX_ITER = max(1, round(solver.MAX_ITER / scale))
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
    solver.EMA.DECAY = solver.EMA.DECAY**scale  # the average spans the same number of images (Busbridge et al. 2023)
    for section, key in PERIODS:
        if scaled[section][key]:  # 0 is a special value, kept as it is
            scaled[section][key] = max(1, round(scaled[section][key] / scale))
    solver.REFERENCE_WORLD_SIZE = processes
    check_config(scaled)
    logger.info(
        "Scaled from %d processes (SOLVER.REFERENCE_WORLD_SIZE) to %d: SOLVER.IMS_PER_BATCH %d, BASE_LR %g, MAX_ITER "
        "%d, WARMUP_ITERS %d, CHECKPOINT_PERIOD %d, EMA.DECAY %g, TEST.EVAL_PERIOD %d",
        reference, processes, solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.WARMUP_ITERS,
        solver.CHECKPOINT_PERIOD, solver.EMA.DECAY, scaled.TEST.EVAL_PERIOD,
    )  # fmt: skip
    if cfg.is_frozen():
        scaled.freeze()
    return scaled
