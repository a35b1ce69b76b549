"""Two Gloo processes give the losses and gradients of one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from san.losses import MatchedLayer, SetCriterion, Term
from san.losses.terms import average_counts, count_batch
from tests.forks import fork_as_spawn
from tests.losses.test_criterion import SMALL, make_outputs, make_targets, select, tensors

SEEDS = [21, 22, 23, 24]


class OneMore(SetCriterion):
    """Adds a loss per image, and one per mask."""

    def terms(self, layer: MatchedLayer):
        mine = {"loss_area": Term(layer.mask_logits.sigmoid().mean((1, 2, 3)).sum(), per="images")}
        matched = layer.mask_logits[layer.pairs.images, layer.pairs.queries]
        return super().terms(layer) | mine | {"loss_height": Term(matched.sum(), per="masks")}


def losses_and_gradients(counts, part, norm=None):
    """The losses of some images of one fixed batch, and the gradients with respect to the whole batch's outputs."""
    outputs = make_outputs(batch=4, requires_grad=True)
    targets = make_targets(counts)
    chosen, seeds = [targets[i] for i in part], [SEEDS[i] for i in part]
    losses = OneMore(SMALL)(select(outputs, part), chosen, seeds=seeds, norm=norm)
    sum(losses.values()).backward()
    return {key: value.detach() for key, value in losses.items()}, [tensor.grad for tensor in tensors(outputs)]


CASES = [
    ((3, 1, 0, 4), ([0, 1], [2, 3])),
    ((3, 1, 0, 4), ([0, 1, 3], [2])),  # uneven, and one worker without any target
    ((0, 0, 1, 0), ([0, 1], [2, 3])),  # fewer masks than workers
]


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        torch.save([losses_and_gradients(counts, parts[rank]) for counts, parts in CASES], f"{folder}/{rank}.pt")
        dist.barrier()  # no process ends while another still communicates with it
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Per process, per case."""
    folder = tmp_path_factory.mktemp("workers")
    fork_as_spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_processes_equal_one(results, case):
    expected_losses, expected_gradients = losses_and_gradients(CASES[case][0], [0, 1, 2, 3])
    per_process = [result[case] for result in results]
    for key, value in expected_losses.items():
        torch.testing.assert_close(sum(losses[key] for losses, _ in per_process) / 2, value)
    for i, gradient in enumerate(expected_gradients):
        total = sum(gradients[i] for _, gradients in per_process)
        torch.testing.assert_close(total / 2, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_counts_of_an_iteration_make_parts_add_up(case):
    """Normalisers as counted by the trainer, over two processes, or over two accumulation steps of one process."""
    counts, parts = CASES[case]
    expected_losses, expected_gradients = losses_and_gradients(counts, [0, 1, 2, 3])
    num_queries = make_outputs(batch=4)["pred_logits"].shape[1]
    sums = [count_batch([counts[i] for i in part], num_queries, SMALL.no_object_weight) for part in parts]
    for num_processes in (1, 2):
        norm = average_counts(*map(sum, zip(*sums, strict=True)), num_processes)
        found = [losses_and_gradients(counts, part, norm) for part in parts]
        for key, value in expected_losses.items():
            torch.testing.assert_close(sum(losses[key] for losses, _ in found) / num_processes, value)
        for i, gradient in enumerate(expected_gradients):
            total = sum(gradients[i] for _, gradients in found) / num_processes
            torch.testing.assert_close(total, gradient, rtol=1e-5, atol=1e-7)
