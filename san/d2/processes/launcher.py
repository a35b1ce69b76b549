"""From the command line to a run in one process or many: workers, logs, seeds.

Workers are started by `launch` (``--num-gpus``, ``--num-machines``, ``--machine-rank``, ``--dist-url``), or by torchrun
or srun, whose environment is recognised (`san.d2.processes.job`). On GPUs they talk over NCCL, on CPUs over Gloo.
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
from san.d2.processes.job import Place, check_meeting, find_place
from san.d2.processes.stopping import EXIT_CODE, StopRequested, ending_at_the_second, passing_on
from san.errors import INTERRUPTED, one_line
from san.files import home_folder
from san.redaction import RedactingFormatter

WORKER_TIMEOUT = timedelta(minutes=30)
"""How long a worker waits for another, however it was started; Detectron2's."""

logger = logging.getLogger("san.d2.launcher")

_DROP_SECONDS = 0.2  # they take milliseconds


def start_workers(main: Callable[..., None], cfg: CfgNode, args: argparse.Namespace) -> None:
    """Calls ``main(cfg, args)`` in every worker.

    Args:
        main: a function of a module, so that it can be sent to other processes.
        cfg: the run.
        args: the command line, with num_gpus, num_machines, machine_rank, dist_url.

    Raises:
        ValueError: if there are fewer GPUs than asked for, the number of processes or machines is illegal, they cannot
            meet at dist_url, a launcher's environment makes no sense, or MODEL.DEVICE names one GPU for several
            processes.
        torch.multiprocessing.ProcessExitedException: if a worker failed.
    """
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    _check_numbers(args)
    place = _place(args)
    if place is not None:
        _check_device(cfg.MODEL.DEVICE, place.world_size)
        with ending_at_the_second(patience=0):
            _join(place, on_gpu)
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
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else the workers would be connected for GPUs
    if processes > 1:
        check_meeting(args.dist_url, machines=args.num_machines, here=args.machine_rank == 0)
    workers = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    try:
        with passing_on() if processes > 1 else contextlib.nullcontext():
            launch(_work, *workers, args=(main, cfg, args), timeout=WORKER_TIMEOUT)
    except ProcessException as error:
        _tell_end(error, args.machine_rank * args.num_gpus, Path(cfg.OUTPUT_DIR))
        raise


def _place(args: argparse.Namespace) -> Place | None:
    """This process's place in a job that a launcher has started; None where the options start the processes."""
    place = find_place(os.environ)
    if place is None or place.source != "srun":
        return place
    if args.num_machines > 1:
        return None
    if args.num_gpus > 1:
        raise ValueError(
            f"--num-gpus is {args.num_gpus}, but srun has started {place.world_size} tasks, each of which would start "
            "a run of its own; leave --num-gpus out for a process per task, or give --num-machines, --machine-rank "
            '"$SLURM_NODEID" and --dist-url too, with one task per node'
        )
    return place


def _work(main: Callable[..., None], cfg: CfgNode, args: argparse.Namespace) -> None:
    """What a worker does. All take leave together; one that has failed leaves alone, and waits for nobody.

    Raises:
        StopRequested: as `main` has, but after leaving: an error's trace holds all that its frames have held.
    """
    stopped = False
    try:
        main(cfg, args)
    except StopRequested:  # raised by all
        stopped = True
    leave_groups()
    if stopped:
        raise StopRequested


def leave_groups() -> None:
    """Ends the process groups, where there are several workers; threads that outlive them may abort the process."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    comm.synchronize()  # nobody leaves while another still talks to it
    # Gloo's threads need the GIL to drop the tensors of finished exchanges; a group's end waits for them and holds it
    time.sleep(_DROP_SECONDS)
    forget_groups()
    gc.collect()  # a trainer and its hooks hold each other, and with them the groups
    dist.destroy_process_group()


def _tell_end(error: ProcessException, first_rank: int, folder: Path) -> None:
    """Says which process ended the job: one that was killed could not.

    Args:
        error: of the first process that failed; the others have been ended since.
        first_rank: of this machine's processes.
        folder: of the run, to whose log it goes too, where it is there.
    """
    how = "raised an error"
    if isinstance(error, ProcessExitedException):
        if error.exit_code in (EXIT_CODE, INTERRUPTED):  # asked to, and it has said so
            return
        how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with status {error.exit_code}"
    rank = first_rank + error.error_index
    if folder.is_dir():
        _setup_loggers(folder, first_rank)
    logger.error("Process %d %s, and the others were ended. Its log: %s", rank, how, log_file(folder, rank))


def log_file(folder: Path, rank: int) -> Path:
    """The log of a process."""
    return folder / (f"log.txt.rank{rank}" if rank else "log.txt")


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuses numbers of processes and machines that start nothing, or machines that would not know each other."""
    if args.num_gpus < 0:
        raise ValueError(
            f"--num-gpus is {args.num_gpus}; give the processes per machine, 0 or 1 for this process alone"
        )
    if args.num_machines < 1:
        raise ValueError(f"--num-machines is {args.num_machines}; give 1 or more")
    if not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--machine-rank is {args.machine_rank} but --num-machines is {args.num_machines}; number the machines "
            "from 0, which is the one that --dist-url names"
        )
    if args.num_gpus == 0 and args.num_machines > 1:
        raise ValueError(f"--num-gpus is 0 with {args.num_machines} machines; give 1 or more processes per machine")


def _check_device(device: str, processes: int) -> None:
    """Refuses one numbered GPU for several processes."""
    if processes > 1 and device.startswith("cuda:"):
        raise ValueError(
            f"MODEL.DEVICE is {device!r} but there are {processes} processes; set it to cuda, which gives every "
            "process its own GPU, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )


def _join(place: Place, on_gpu: bool) -> None:
    """Connects this process to the others of its job.

    Raises:
        ValueError: there are GPUs, but fewer than processes on this machine; or the processes cannot meet.
    """
    if on_gpu:
        count = torch.cuda.device_count()
        if count > 1 and count < place.local_world_size:
            raise ValueError(
                f"{place.source} has started {place.local_world_size} processes on this machine but PyTorch sees "
                f"{count} GPUs; start one process per GPU, or set MODEL.DEVICE cpu"
            )
        torch.cuda.set_device(place.local_rank if count > 1 else 0)  # Slurm may show each task a GPU of its own
    os.environ.update(place.as_variables())
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=WORKER_TIMEOUT)
    except dist.DistError as error:
        raise ValueError(
            f"process {place.rank} of {place.world_size} cannot meet the others at MASTER_ADDR {place.address}, "
            f"MASTER_PORT {place.port} ({one_line(error, limit=300)}); set these variables to the machine of process 0 "
            "and a free port of it, the same for all"
        ) from error
    comm.create_local_process_group(place.local_world_size)


def setup_run(cfg: CfgNode) -> None:
    """Logs, seeds and the folder of a run; every worker calls it once."""
    folder, rank = Path(cfg.OUTPUT_DIR), comm.get_rank()
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    comm.synchronize()
    _setup_loggers(folder, rank)
    place_caches(folder)
    if cfg.MODEL.DEVICE.startswith("cuda:"):
        _check_device(cfg.MODEL.DEVICE, comm.get_world_size())
        torch.cuda.set_device(cfg.MODEL.DEVICE)  # its name and memory are those logged
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
    """Without a home folder, other packages' caches and settings go below a run's; iopath would make a folder ``~``.

    Args:
        folder: of the run. Environment variables that are set already stay.
    """
    if home_folder("~") is not None:
        return
    for name in ("FVCORE_CACHE", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(name, str(folder.resolve() / "cache"))


def _setup_loggers(folder: Path, rank: int) -> None:
    """Logs to the terminal and to the run's folder, and no longer to those of an earlier run of this process."""
    if hasattr(setup_logger, "cache_clear"):
        setup_logger.cache_clear()
    for name in ("fvcore", "detectron2", "san"):
        logging.getLogger(name).handlers.clear()
        setup_logger(str(folder), distributed_rank=rank, name=name)
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(RedactingFormatter(handler.formatter))
            handler.handleError = functools.partial(_endure, handler.handleError)  # type: ignore[method-assign]


def _endure(otherwise: Callable[[logging.LogRecord], None], record: logging.LogRecord) -> None:
    """A log on a full disk lacks lines, which the terminal has; each would fill that with a stack trace."""
    if not isinstance(sys.exc_info()[1], OSError):
        otherwise(record)


def be_deterministic(*, on_gpu: bool) -> None:
    """From now on this process computes with algorithms that give the same bits every time.

    Args:
        on_gpu: where one has no such form (the gradient of point sampling has none on CUDA) PyTorch then warns and
            names it; on a CPU it would be an error, and there is none.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=on_gpu)


def seed_all(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch; the weights drawn next are the same in every worker and every run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
