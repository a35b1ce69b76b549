"""Starts a run in one process or many, and sets up logs and seeds.

Workers are started by `launch` (``--num-gpus``, ``--num-machines``, ``--machine-rank``, ``--dist-url``), by torchrun
or by srun (`san.d2.processes.job`). They communicate with NCCL on GPUs and with Gloo on CPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import logging
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from san.allocator import keep_large_buffers
from san.d2.api import CfgNode, comm, forget_groups, launch, log_backend, setup_logger
from san.d2.processes.job import JobRank, check_dist_url, find_rank
from san.d2.processes.stopping import EXIT_CODE, StopRequested, exiting_on_second_signal, forwarding_signals
from san.io.errors import INTERRUPTED, one_line
from san.io.files import home_folder
from san.io.redaction import RedactingFormatter

WORKER_TIMEOUT = timedelta(minutes=30)
"""Timeout of a worker that waits for others; Detectron2's value."""

logger = logging.getLogger("san.d2.launcher")

_DROP_SECONDS = 0.2  # the threads need milliseconds


def start_workers(main: Callable[..., None], cfg: CfgNode, args: argparse.Namespace) -> None:
    """Call ``main(cfg, args)`` in every worker.

    Args:
        main: a picklable function.
        cfg: the configuration.
        args: the parsed command line, with num_gpus, num_machines, machine_rank, dist_url.

    Raises:
        ValueError: there are fewer GPUs than requested, the number of processes or machines is invalid, they cannot
            connect at dist_url, a launcher's environment is invalid, or MODEL.DEVICE names one GPU for several
            processes.
        torch.multiprocessing.ProcessExitedException: a worker failed.
    """
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    _check_numbers(args)
    job = _launcher_rank(args)
    if job is not None:
        _check_device(cfg.MODEL.DEVICE, job.world_size)
        with exiting_on_second_signal(grace=0):
            _init_group(job, on_gpu)
        _work(main, cfg, args)
        return
    processes = args.num_gpus * args.num_machines
    _check_device(cfg.MODEL.DEVICE, processes)
    if on_gpu and args.num_gpus > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus is {args.num_gpus} but PyTorch sees {torch.cuda.device_count()}; "
            "lower it, or set MODEL.DEVICE cpu to train with that many processes"
        )
    if not on_gpu and processes > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # otherwise the workers would be connected with NCCL
    if processes > 1:
        check_dist_url(args.dist_url, machines=args.num_machines, here=args.machine_rank == 0)
    workers = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    try:
        with forwarding_signals() if processes > 1 else contextlib.nullcontext():
            launch(_work, *workers, args=(main, cfg, args), timeout=WORKER_TIMEOUT)
    except ProcessException as error:
        _log_failed_process(error, args.machine_rank * args.num_gpus, Path(cfg.OUTPUT_DIR))
        raise


def _launcher_rank(args: argparse.Namespace) -> JobRank | None:
    """Return the rank of this process in a launcher's job; None if the options start the processes."""
    job = find_rank(os.environ)
    if job is None or job.source != "srun":
        return job
    if args.num_machines > 1:
        return None
    if args.num_gpus > 1:
        raise ValueError(
            f"--num-gpus is {args.num_gpus}, but srun has started {job.world_size} tasks, each of which would start "
            "a separate run; omit --num-gpus for one process per task, or pass --num-machines, --machine-rank "
            '"$SLURM_NODEID" and --dist-url too, with one task per node'
        )
    return job


def _work(main: Callable[..., None], cfg: CfgNode, args: argparse.Namespace) -> None:
    """Run a worker. All workers end together; a failed one ends without waiting for the others.

    Raises:
        StopRequested: `main` raised it; raised again without its traceback, which references all objects of `main`.
    """
    stopped = False
    try:
        main(cfg, args)
    except StopRequested:  # raised in all workers
        stopped = True
    destroy_groups()
    if stopped:
        raise StopRequested


def destroy_groups() -> None:
    """Destroy the process groups, if any; threads that outlive them may abort the process."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    comm.synchronize()  # no worker leaves while another still communicates with it
    # Gloo's threads need the GIL to free tensors of finished operations, but destroying a group holds the GIL and waits
    time.sleep(_DROP_SECONDS)
    forget_groups()
    gc.collect()  # a trainer and its hooks form a cycle that references the groups
    dist.destroy_process_group()


def _log_failed_process(error: ProcessException, first_rank: int, folder: Path) -> None:
    """Log which process ended the job, because a killed process cannot log it.

    Args:
        error: error of the first process that failed; the others have been ended.
        first_rank: lowest rank on this machine.
        folder: folder of the run; if it exists, the line is also written to its log.
    """
    how = "raised an error"
    if isinstance(error, ProcessExitedException):
        if error.exit_code in (EXIT_CODE, INTERRUPTED):  # requested, and already logged
            return
        how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with status {error.exit_code}"
    rank = first_rank + error.error_index
    if folder.is_dir():
        _setup_loggers(folder, first_rank)
    logger.error("Process %d %s, and the others were ended. Its log: %s", rank, how, log_file(folder, rank))


def log_file(folder: Path, rank: int) -> Path:
    """Return the log file of a process."""
    return folder / (f"log.txt.rank{rank}" if rank else "log.txt")


def _check_numbers(args: argparse.Namespace) -> None:
    """Check the numbers of processes and machines."""
    if args.num_gpus < 0:
        raise ValueError(
            f"--num-gpus is {args.num_gpus}; set it to the processes per machine, 0 or 1 for this process only"
        )
    if args.num_machines < 1:
        raise ValueError(f"--num-machines is {args.num_machines}; set it to 1 or more")
    if not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--machine-rank is {args.machine_rank} but --num-machines is {args.num_machines}; number the machines "
            "from 0, the machine in --dist-url"
        )
    if args.num_gpus == 0 and args.num_machines > 1:
        raise ValueError(f"--num-gpus is 0 with {args.num_machines} machines; use 1 or more processes per machine")


def _check_device(device: str, processes: int) -> None:
    """Raise if one numbered GPU is set for several processes."""
    if processes > 1 and device.startswith("cuda:"):
        raise ValueError(
            f"MODEL.DEVICE is {device!r} but there are {processes} processes; set it to cuda, which gives every "
            "process its own GPU, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )


def _init_group(job: JobRank, on_gpu: bool) -> None:
    """Connect this process to the others of its job.

    Raises:
        ValueError: this machine has GPUs, but fewer than processes; or the processes cannot connect.
    """
    if on_gpu:
        count = torch.cuda.device_count()
        if count > 1 and count < job.local_world_size:
            raise ValueError(
                f"{job.source} has started {job.local_world_size} processes on this machine but PyTorch sees "
                f"{count} GPUs; start one process per GPU, or set MODEL.DEVICE cpu"
            )
        torch.cuda.set_device(job.local_rank if count > 1 else 0)  # Slurm may show each task only one GPU
    os.environ.update(job.as_variables())
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=WORKER_TIMEOUT)
    except dist.DistError as error:
        raise ValueError(
            f"process {job.rank} of {job.world_size} cannot connect to the others at MASTER_ADDR {job.address}, "
            f"MASTER_PORT {job.port} ({one_line(error, limit=300)}); set these variables to the machine of process 0 "
            "and a free port of it, the same in all processes"
        ) from error
    comm.create_local_process_group(job.local_world_size)


def setup_run(cfg: CfgNode) -> None:
    """Set up logs, seeds and the folder of a run; every worker calls it once."""
    folder, rank = Path(cfg.OUTPUT_DIR), comm.get_rank()
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    comm.synchronize()
    _setup_loggers(folder, rank)
    place_caches(folder)
    if cfg.MODEL.DEVICE.startswith("cuda:"):
        _check_device(cfg.MODEL.DEVICE, comm.get_world_size())
        torch.cuda.set_device(cfg.MODEL.DEVICE)  # its name and memory are logged
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.DETERMINISTIC:
        be_deterministic(on_gpu=cfg.MODEL.DEVICE.startswith("cuda"))
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    if cfg.SEED >= 0:
        seed_all(cfg.SEED)
    if os.environ.get("SAN_MALLOC") != "system":
        keep_large_buffers()
    if not comm.is_main_process():
        return
    log_backend(logger)
    device = cfg.MODEL.DEVICE
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    logger.info(
        "Python %s, PyTorch %s, %s x %s", platform.python_version(), torch.__version__, comm.get_world_size(), hardware
    )


def place_caches(folder: Path) -> None:
    """If there is no home folder, put other packages' caches and settings in a run; iopath would create ``~``.

    Args:
        folder: folder of the run. Environment variables that are already set are kept.
    """
    if home_folder("~") is not None:
        return
    for name in ("FVCORE_CACHE", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(name, str(folder.resolve() / "cache"))


def _setup_loggers(folder: Path, rank: int) -> None:
    """Log to the terminal and the run's folder, and no longer to the folder of an earlier run."""
    if hasattr(setup_logger, "cache_clear"):
        setup_logger.cache_clear()
    for name in ("fvcore", "detectron2", "san"):
        logging.getLogger(name).handlers.clear()
        setup_logger(str(folder), distributed_rank=rank, name=name)
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(RedactingFormatter(handler.formatter))
            handler.handleError = functools.partial(_handle_log_error, handler.handleError)  # type: ignore[method-assign]


def _handle_log_error(otherwise: Callable[[logging.LogRecord], None], record: logging.LogRecord) -> None:
    """Ignore lines that a full disk cannot store; the terminal has them, and would get a traceback for each."""
    if not isinstance(sys.exc_info()[1], OSError):
        otherwise(record)


def be_deterministic(*, on_gpu: bool) -> None:
    """Use deterministic algorithms in this process.

    Args:
        on_gpu: only warn about operations without a deterministic algorithm (on CUDA, the gradient of point sampling);
            on a CPU they raise, but there are none.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, at its first product
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=on_gpu)


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, so that every worker and run draws the same weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
