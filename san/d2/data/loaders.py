"""Training and evaluation batches.

All randomness of training is a pure function of (seed, position in the sample stream): position p of the stream is
one sample of the p // n-th shuffling of the n samples, its augmentation and its loss points are drawn from generators
seeded by (seed, p). Batch i holds positions i * B .. i * B + B - 1. So neither the number of loading workers nor the
number of processes nor an interruption changes what is trained on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from san.d2.data.batches import BadSample, Batches, Sample, set_up_worker

Record = dict[str, Any]
"""One sample of a data set as registered: at least file_name and sem_seg_file_name."""

TrainMapping = Callable[[Record, np.random.Generator], Sample]
EvalMapping = Callable[[Record], Sample]

_SHUFFLE_STREAM = 0
_AUGMENT_STREAM = 1
_POINT_STREAM = 2
_REPLACE_STREAM = 3

RETRY_PAUSE = 0.1
"""Seconds before a sample that could not be read is tried again: a network file system may only have stumbled."""

MAX_REPLACEMENTS = 4
"""Samples tried in the place of one that cannot be read. If none of them can be either, something greater is wrong."""


def try_twice(load: Callable[[], Sample], file_name: str) -> Sample | BadSample:
    """What `load` gives; where a file is at fault it is tried once more after `RETRY_PAUSE`."""
    for attempt in range(2):
        if attempt:
            time.sleep(RETRY_PAUSE)
        try:
            return load()
        except (ValueError, OSError) as error:
            bad = BadSample(type(error), str(error), file_name)
    return bad


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of samples in one pass over the data.

    Args:
        seed: of the run.
        epoch: number of the pass, from 0.
        size: number of samples.

    Returns:
        (size,) a permutation.
    """
    return np.random.default_rng((seed, _SHUFFLE_STREAM, epoch)).permutation(size)


def point_seed(seed: int, position: int) -> int:
    """The seed of the loss points of the sample at a position: 31 bits."""
    return int(np.random.default_rng((seed, _POINT_STREAM, position)).integers(2**31 - 1))


class PositionDataset(Dataset[Any]):
    """The endless, shuffled, augmented stream of training samples, indexed by position.

    Args:
        records: the data set.
        mapping: record and generator to sample.
        seed: of the run, 0 or more.
    """

    def __init__(self, records: Sequence[Record], mapping: TrainMapping, seed: int) -> None:
        self.records = records
        self.mapping = mapping
        self.seed = seed

    def __getitem__(self, position: int) -> Sample | BadSample:
        """The sample at a position.

        One that cannot be read is replaced by another, drawn from (seed, position); the sample then holds what was bad
        under ``bad``. Where the replacements cannot be read either the result is a `BadSample`.
        """
        epoch, rank_in_epoch = divmod(position, len(self.records))
        index = int(epoch_order(self.seed, epoch, len(self.records))[rank_in_epoch])
        bad: list[BadSample] = []
        draw = np.random.default_rng((self.seed, _REPLACE_STREAM, position))
        while len(bad) <= MAX_REPLACEMENTS:
            sample = self._load(index, position)
            if not isinstance(sample, BadSample):
                found = {"bad": tuple(bad)} if bad else {}
                return sample | {"seed": point_seed(self.seed, position), "position": position} | found
            bad.append(sample)
            index = int(draw.integers(len(self.records)))
        return bad[0]

    def _load(self, index: int, position: int) -> Sample | BadSample:
        """A record, augmented as its position says."""
        record = self.records[index]

        def load() -> Sample:
            return self.mapping(record, np.random.default_rng((self.seed, _AUGMENT_STREAM, position)))

        return try_twice(load, str(record["file_name"]))


class PositionSampler(Sampler[int]):
    """The positions one process reads: rank, rank + world, rank + 2 * world, ... from a start to an end.

    Args:
        start: first position of the stream, over all processes.
        end: position after the last.
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self, start: int, end: int, rank: int = 0, world: int = 1) -> None:
        self.positions = range(start + rank, end, world)

    def __iter__(self) -> Iterator[int]:
        """Yields positions in order."""
        return iter(self.positions)

    def __len__(self) -> int:
        """Number of positions left to this process."""
        return len(self.positions)


class EvalDataset(Dataset[Any]):
    """A data set in order, mapped; the error of a file that fails twice comes back as a `BadSample`."""

    def __init__(self, records: Sequence[Record], mapping: EvalMapping) -> None:
        self.records = records
        self.mapping = mapping

    def __getitem__(self, index: int) -> Sample | BadSample:
        """The sample of one record."""
        record = self.records[index]
        return try_twice(lambda: self.mapping(record), str(record["file_name"]))

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)


def as_list(batch: list[Any]) -> list[Any]:
    """Collates nothing: images of a batch may differ in size."""
    return batch


@dataclass(frozen=True)
class StreamConfig:
    """Which part of the stream a process reads, and in what batches.

    Attributes:
        seed: of the run, 0 or more.
        batch_size: B, samples of one iteration over all processes and accumulation steps.
        start_iter: first iteration to deliver.
        max_iter: iteration after the last.
        rank: number of this process.
        world: number of processes.
        accumulation: steps into which an iteration is divided.

    Raises:
        ValueError: if the batch cannot be divided so.
    """

    seed: int
    batch_size: int
    start_iter: int
    max_iter: int
    rank: int = 0
    world: int = 1
    accumulation: int = 1

    def __post_init__(self) -> None:
        """Refuse batches that cannot be divided."""
        parts = self.world * self.accumulation
        if self.batch_size < 1 or self.accumulation < 1 or self.batch_size % parts:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {self.batch_size}, which {self.world} process(es) times "
                f"SOLVER.ACCUMULATION_STEPS {self.accumulation} do not divide; choose a multiple of {max(parts, 1)}"
            )

    @property
    def step_size(self) -> int:
        """Samples of one accumulation step of one process."""
        return self.batch_size // (self.world * self.accumulation)


def build_train_loader(
    records: Sequence[Record],
    mapping: TrainMapping,
    stream: StreamConfig,
    *,
    num_workers: int,
    pin_memory: bool = False,
    timeout: float = 0,
) -> Batches:
    """The training batches of one process, one accumulation step each.

    Args:
        records: the data set, not empty.
        mapping: record and generator to sample.
        stream: which part of the stream.
        num_workers: loading processes; 0 loads in this one.
        pin_memory: for copies to a GPU.
        timeout: see `Batches`.

    Returns:
        ``accumulation * (max_iter - start_iter)`` batches of ``stream.step_size`` samples.
    """
    sampler = PositionSampler(
        stream.start_iter * stream.batch_size, stream.max_iter * stream.batch_size, stream.rank, stream.world
    )
    loader = DataLoader(
        PositionDataset(records, mapping, stream.seed),
        batch_size=stream.step_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=as_list,
        pin_memory=pin_memory,
        worker_init_fn=set_up_worker,
    )
    return Batches(loader, timeout)


def build_eval_loader(
    records: Sequence[Record],
    mapping: EvalMapping,
    *,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    done: int = 0,
    timeout: float = 0,
) -> Batches:
    """The images one process evaluates, one at a time: number rank, rank + world, ...

    Args:
        records: the data set.
        mapping: record to sample.
        rank: number of this process.
        world: number of processes.
        num_workers: loading processes; 0 loads in this one.
        done: images of this process that are left out, from the start.
        timeout: see `Batches`.

    Returns:
        Batches of one sample.
    """
    loader = DataLoader(
        EvalDataset(records, mapping),
        batch_size=1,
        sampler=range(rank, len(records), world)[done:],
        num_workers=num_workers,
        collate_fn=as_list,
        worker_init_fn=set_up_worker,
    )
    return Batches(loader, timeout)
