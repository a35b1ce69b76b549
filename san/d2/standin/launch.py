"""Stands in for `detectron2.engine.launch`: starts the workers of one machine and connects them.

With GPUs one worker per GPU over NCCL, without any over Gloo on the CPU, as there.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from san.d2.standin import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)
"""Default timeout of a worker that waits for others."""


@dataclass(frozen=True)
class _Job:
    """Arguments of every worker of this machine; the other fields are `launch`'s arguments of the same names.

    Attributes:
        world_size: number of workers on all machines.
    """

    main_func: Callable[..., Any]
    args: tuple[Any, ...]
    world_size: int
    num_gpus_per_machine: int
    machine_rank: int
    dist_url: str | None
    timeout: timedelta


def _find_free_port() -> int:
    """Return a free port of this machine; another program may still take it first."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run a function in every worker of this machine; called once on every machine.

    Args:
        main_func: called as ``main_func(*args)``; with several workers it must be picklable.
        num_gpus_per_machine: workers per machine; without GPUs, processes. 0 calls the function in this process.
        num_machines: number of machines.
        machine_rank: rank of this machine, from 0.
        dist_url: address of worker 0, such as ``tcp://host:port``; ``auto`` finds a free port, on one machine only.
        args: the arguments.
        timeout: timeout of a worker that waits for others.

    Raises:
        ValueError: if ``dist_url`` is ``auto`` and there are several machines.
        torch.multiprocessing.ProcessRaisedException: if a worker fails; its traceback is in the message, and the
            others are ended.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    if dist_url == "auto":
        if num_machines != 1:
            raise ValueError(
                f"--dist-url auto finds a port on one machine only, but there are {num_machines}; "
                "use tcp://<first machine>:<free port>, the same on every machine"
            )
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url is not None and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            "file:// is not a reliable init_method in multi-machine jobs. Prefer tcp://"
        )
    job = _Job(main_func, args, world_size, num_gpus_per_machine, machine_rank, dist_url, timeout)
    spawn(_run_worker, args=(job,), nprocs=num_gpus_per_machine)


def _run_worker(local_rank: int, job: _Job) -> None:
    """Run a worker: connect it to the others, select its GPU, call the function."""
    on_gpu = torch.cuda.is_available()
    if on_gpu and job.num_gpus_per_machine > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus is {job.num_gpus_per_machine}, but this machine has {torch.cuda.device_count()}; "
            "use at most that"
        )
    try:
        dist.init_process_group(
            backend="nccl" if on_gpu else "gloo",
            init_method=job.dist_url,
            world_size=job.world_size,
            rank=job.machine_rank * job.num_gpus_per_machine + local_rank,
            timeout=job.timeout,
        )
    except Exception:
        logging.getLogger(__name__).error("Process group URL: %s", job.dist_url)
        raise
    comm.create_local_process_group(job.num_gpus_per_machine)
    if on_gpu:
        torch.cuda.set_device(local_rank)
    comm.synchronize()  # no worker starts before all are connected
    job.main_func(*job.args)
