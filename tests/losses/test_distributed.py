"""Two Gloo processes give the losses and gradients of one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from san.losses import SetCriterion
from tests.losses.test_criterion import SMALL, make_outputs, make_targets, select, tensors

SEEDS = [21, 22, 23, 24]


def losses_and_gradients(counts, part):
    """The losses of some images of one fixed batch, and the gradients with respect to the whole batch's outputs."""
    outputs = make_outputs(batch=4, requires_grad=True)
    targets = make_targets(counts)
    losses = SetCriterion(SMALL)(select(outputs, part), [targets[i] for i in part], seeds=[SEEDS[i] for i in part])
    sum(losses.values()).backward()
    return {key: value.detach() for key, value in losses.items()}, [tensor.grad for tensor in tensors(outputs)]


def work(rank, folder, counts, parts):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(parts))
    try:
        torch.save(losses_and_gradients(counts, parts[rank]), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("counts", "parts"),
    [
        ((3, 1, 0, 4), ([0, 1], [2, 3])),
        ((3, 1, 0, 4), ([0, 1, 3], [2])),  # uneven, and one worker without any target
        ((0, 0, 1, 0), ([0, 1], [2, 3])),  # fewer masks than workers
    ],
)
def test_two_processes_equal_one(tmp_path, counts, parts):
    expected_losses, expected_gradients = losses_and_gradients(counts, [0, 1, 2, 3])
    mp.spawn(work, args=(str(tmp_path), counts, parts), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for key, value in expected_losses.items():
        torch.testing.assert_close(sum(losses[key] for losses, _ in results) / 2, value)
    for i, gradient in enumerate(expected_gradients):
        torch.testing.assert_close(sum(gradients[i] for _, gradients in results) / 2, gradient, rtol=1e-5, atol=1e-7)
