"""Stands in for `detectron2.utils.comm`: ranks, and communication between workers.

Every function also works in a single process without torch.distributed. Objects are sent over a Gloo group, so that
they are not copied to a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_MISSING_LOCAL_GROUP = (
    "Local process group is not yet created! Start the workers with `launch()`, or call "
    "comm.create_local_process_group(num_workers_per_machine) after torch.distributed.init_process_group()."
)

# State of the process, like torch.distributed's own: the group of the workers on this machine.
_local_process_group: dist.ProcessGroup | None = None


def _is_distributed() -> bool:
    """Whether torch.distributed runs in this process."""
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of workers on all machines; 1 without torch.distributed."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Return this worker's global rank."""
    return dist.get_rank() if _is_distributed() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Create the group of the workers on this machine. `launch` calls it; other launchers must call it in each worker.

    Args:
        num_workers_per_machine: the same on every machine; ranks are numbered machine by machine.

    Raises:
        AssertionError: if it was called before, or the number of workers is not a multiple of it.
    """
    global _local_process_group
    assert _local_process_group is None, "create_local_process_group() was called before"
    world_size = get_world_size()
    assert world_size % num_workers_per_machine == 0, (
        f"{world_size} workers cannot be {num_workers_per_machine} on every machine"
    )
    own_machine = get_rank() // num_workers_per_machine
    for machine in range(world_size // num_workers_per_machine):
        first = machine * num_workers_per_machine
        group = dist.new_group([*range(first, first + num_workers_per_machine)])  # a collective: all make all groups
        if machine == own_machine:
            assert isinstance(group, dist.ProcessGroup)
            _local_process_group = group


def forget_groups() -> None:
    """Drop all references to groups when a worker ends, as the threads of a group live as long as a reference."""
    global _local_process_group
    _local_process_group = None
    gloo_group.cache_clear()


def get_local_process_group() -> dist.ProcessGroup:
    """Return the group of the workers on this machine; AssertionError if it was not created."""
    assert _local_process_group is not None, _MISSING_LOCAL_GROUP
    return _local_process_group


def get_local_rank() -> int:
    """Return this worker's rank on its machine."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def is_main_process() -> bool:
    """Whether this is worker 0, which writes files."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every worker has called this function."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])  # NCCL would otherwise guess the device
    else:
        dist.barrier()


@functools.lru_cache
def gloo_group() -> dist.ProcessGroup | None:
    """Return the Gloo group of all workers, created once."""
    if dist.get_backend() == dist.Backend.GLOO:
        return dist.group.WORLD
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Send an object of every worker to every worker.

    Args:
        data: any object that can be pickled.
        group: the workers that take part; all of them by default.

    Returns:
        One object per worker, in the order of ranks.
    """
    if get_world_size() == 1:
        return [data]
    group = group or gloo_group()
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Send an object of every worker to one worker.

    Args:
        data: any object that can be pickled.
        dst: rank of the worker that receives.
        group: the workers that take part; all of them by default.

    Returns:
        On ``dst`` one object per worker, in the order of ranks; an empty list elsewhere.
    """
    if get_world_size() == 1:
        return [data]
    group = group or gloo_group()
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    received: list[Any] | None = [None] * world_size if dist.get_rank() == dst else None
    dist.gather_object(data, received, dst=dst, group=group)
    return received or []


def shared_random_seed() -> int:
    """Return a random number that is the same in every worker; all must call it.

    Returns:
        A seed in 0..2^31 - 1, drawn by worker 0 from numpy's global generator.
    """
    seed: int = all_gather(int(np.random.randint(2**31)))[0]
    return seed
