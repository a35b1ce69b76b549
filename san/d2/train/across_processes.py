"""Keeps the processes of a job consistent: the main process decides and reads, and all have its settings and weights.

Machines need not share a disk: the main process reads checkpoints and sends them to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from san.d2.api import CfgNode, broadcast, comm
from san.d2.checkpoints.checkpointer import SANCheckpointer
from san.d2.config.schema import KEYS
from san.d2.config.yaml_file import flatten
from san.d2.evaluate.resume import weights_digest
from san.io.errors import USER_ERRORS, one_line

T = TypeVar("T")

OWN_KEYS = (*(key.name for key in KEYS.values() if key.is_path), "DATALOADER.NUM_WORKERS")
"""Keys that may differ between machines."""


def from_main(action: Callable[[], T]) -> T:
    """Call a function on the main process and return its result in every process; every process must call this.

    Args:
        action: called on the main process only; its result is sent to the others.

    Raises:
        Exception: the error of the function on the main process; on the others a ValueError or RuntimeError with the
            same message.
    """
    result: Any = None
    failure: Exception | None = None
    if comm.is_main_process():
        try:
            result = action()
        except Exception as error:
            failure = error
    description = None if failure is None else (isinstance(failure, USER_ERRORS), one_line(failure))
    result, description = broadcast((result, description))
    if failure is not None:
        raise failure
    if description is not None:
        expected, message = description
        kind = ValueError if expected else RuntimeError
        raise kind(f"process 0: {message}")
    value: T = result
    return value


def check_same_settings(cfg: CfgNode, modes: Mapping[str, bool]) -> None:
    """Check that all processes have the same settings; otherwise they would train separately or deadlock.

    Every process must call it.

    Args:
        cfg: this process's configuration.
        modes: this process's options that select what it does, by name.

    Raises:
        ValueError: on every process; names the keys and values of the first process that differs from the main one.
    """
    if comm.get_world_size() == 1:
        return
    own = {key: repr(value) for key, value in flatten(cfg) if key not in OWN_KEYS}
    first, *others = comm.all_gather(own | {name: str(value) for name, value in modes.items()})
    for rank, other in enumerate(others, start=1):
        changed = [key for key in sorted({*first, *other}) if first.get(key) != other.get(key)]
        if changed:
            values = [
                f"{key} is {one_line(str(other.get(key)), limit=100)}, not {one_line(str(first.get(key)), limit=100)}"
                for key in changed[:5]
            ]
            raise ValueError(
                f"process {rank} was started with other settings than process 0: {'; '.join(values)}; start all "
                "processes of a run with the same configuration and options"
            )


def load_everywhere(checkpointer: SANCheckpointer, path: str, checkpointables: Sequence[str] = ()) -> dict[str, Any]:
    """Load a checkpoint, read by the main process, into every process; every process must call this.

    Args:
        checkpointer: of this process's model.
        path: path on the main process's disk.
        checkpointables: names of further objects of the checkpointer to load.

    Returns:
        The other entries of the checkpoint, without tensors of the model and states of objects.

    Raises:
        ValueError, OSError: on every process: it cannot be read, does not fit, or the processes' weights differ.
    """
    if comm.get_world_size() == 1:
        return checkpointer.load(path, checkpointables=[*checkpointables])
    states: dict[str, Any] = {}

    def read() -> dict[str, Any]:
        content = checkpointer.load(path, checkpointables=[*checkpointables])
        states.update({key: checkpointer.loaded[key] for key in checkpointables if key in checkpointer.loaded})
        return {key: value for key, value in content.items() if key != "model"} | {"states": states}

    content = from_main(read)
    _share_weights(checkpointer.model)
    states = content.pop("states")
    if not comm.is_main_process():
        for key in states:
            checkpointer.checkpointables[key].load_state_dict(states[key])
    return content


def _share_weights(model: nn.Module) -> None:
    """Send the main process's weights and buffers to the others."""
    tensors = model.state_dict()
    for tensor in tensors.values():
        dist.broadcast(tensor, src=0)
    if not comm.is_main_process():
        model.load_state_dict(tensors)  # copies the tensors onto themselves, to run the model's load hooks


def check_same_weights(model: nn.Module) -> None:
    """Check that all processes have the same weights; every process must call it.

    Raises:
        ValueError: on every process, if the weights of one differ from those of the main process.
    """
    digests = comm.all_gather(weights_digest(model) if comm.get_world_size() > 1 else "")
    other = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if other:
        raise ValueError(
            f"process {', '.join(map(str, other))} of {len(digests)} has other weights than process 0 before the first "
            "iteration; start all with the same configuration, code and MODEL.CLIP.PRETRAINED, without changing "
            "weights in one of them"
        )


def distribute(model: nn.Module, *, find_unused: bool = False) -> nn.Module:
    """Return the model, wrapped for distributed training if there are several workers.

    Args:
        model: model on its device.
        find_unused: whether trained parameters may have no gradient.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, find_unused_parameters=find_unused)
