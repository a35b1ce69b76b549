"""Loaders of training and evaluation batches.

All randomness of training is a pure function of (seed, position in the sample stream). Position p of the stream is one
sample of shuffle p // n of the n samples; its augmentation and loss points are drawn from generators seeded by
(seed, p). Batch i contains positions i * B .. i * B + B - 1. Therefore the number of workers, the number of processes
and interruptions do not change the training data. With weights of data sets (`Mixture`), position p belongs to one
data set, and is the next sample in that set's own shuffles.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from san.d2.data.batches import BadSample, Batches, BatchSample, set_up_worker

Record = dict[str, Any]
"""One registered sample of a data set: at least file_name, and sem_seg_file_name or, in a panoptic set,
pan_seg_file_name and segments_info (`san.data.panoptic`)."""

TrainMapping = Callable[[Record, np.random.Generator], BatchSample]
EvalMapping = Callable[[Record], BatchSample]

_SHUFFLE_STREAM = 0
_AUGMENT_STREAM = 1
_POINT_STREAM = 2
_REPLACE_STREAM = 3
_MIXTURE_STREAM = 4

RETRY_PAUSE = 0.1
"""Seconds before a failed sample is retried: errors of network file systems may be temporary."""

MAX_REPLACEMENTS = 4
"""Maximum number of samples tried instead of one that cannot be read."""


def load_with_retry(load: Callable[[], BatchSample], file_name: str) -> BatchSample | BadSample:
    """Load a sample; for an error of a file, retry once after `RETRY_PAUSE`, then return the error."""
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
    """Return the order of samples in one epoch.

    Args:
        seed: seed of the run.
        epoch: index of the epoch, from 0.
        size: number of samples.

    Returns:
        a permutation, (size,).
    """
    return np.random.default_rng((seed, _SHUFFLE_STREAM, epoch)).permutation(size)


@dataclass(frozen=True)
class Mixture:
    """Several data sets with fixed shares of the stream, independent of their sizes.

    Every `BLOCK` positions contain the same number of samples of a data set, in random order. Each data set is used
    in its own shuffles.

    Attributes:
        sizes: number of records of each data set; its records follow those of the previous one.
        quotas: samples of each data set in a block, at least 1; their sum is `BLOCK`.
    """

    BLOCK: ClassVar[int] = 1000
    sizes: tuple[int, ...]
    quotas: tuple[int, ...]

    def sample_at(self, seed: int, position: int) -> tuple[int, range]:
        """Return the index of the record at a position, and the indices of all records of its data set."""
        block, place = divmod(position, self.BLOCK)
        sets, numbers = _block_order(seed, block, self.quotas)
        which = int(sets[place])
        first, size = sum(self.sizes[:which]), self.sizes[which]
        epoch, rank = divmod(block * self.quotas[which] + int(numbers[place]), size)
        return first + int(_set_order(seed, which, epoch, size)[rank]), range(first, first + size)


@functools.lru_cache(maxsize=16)
def _set_order(seed: int, which: int, epoch: int, size: int) -> np.ndarray:
    """Return the order of the samples of one data set of a mixture in one of its epochs."""
    return np.random.default_rng((seed, _MIXTURE_STREAM, 1, which, epoch)).permutation(size)


@functools.lru_cache(maxsize=4)
def _block_order(seed: int, block: int, quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the data set of each position of a block, and the number of its earlier samples in the block."""
    sets = np.repeat(np.arange(len(quotas)), quotas)
    sets = np.random.default_rng((seed, _MIXTURE_STREAM, 0, block)).permutation(sets)
    numbers = np.zeros_like(sets)
    for which, quota in enumerate(quotas):
        numbers[sets == which] = np.arange(quota)
    return sets, numbers


def point_seed(seed: int, position: int) -> int:
    """Return the seed of the loss points of the sample at a position: 31 bits."""
    return int(np.random.default_rng((seed, _POINT_STREAM, position)).integers(2**31 - 1))


class PositionDataset(Dataset[Any]):
    """The endless, shuffled, augmented stream of training samples, indexed by position.

    Args:
        records: the data set.
        mapping: (record, generator) -> sample.
        seed: seed of the run, 0 or more.
        mixture: several data sets with fixed shares; None shuffles all records together.
    """

    def __init__(
        self, records: Sequence[Record], mapping: TrainMapping, seed: int, mixture: Mixture | None = None
    ) -> None:
        self.records = records
        self.mapping = mapping
        self.seed = seed
        self.mixture = mixture

    def __getitem__(self, position: int) -> BatchSample | BadSample:
        """Return the sample at a position.

        A sample that cannot be read is replaced by another, drawn from (seed, position); in a mixture, from the same
        data set. The entry ``bad`` of the new sample has the errors. If the replacements cannot be read either, the
        result is a `BadSample`.
        """
        index, among = self._index(position)
        bad: list[BadSample] = []
        draw = np.random.default_rng((self.seed, _REPLACE_STREAM, position))
        while len(bad) <= MAX_REPLACEMENTS:
            sample = self._load(index, position)
            if not isinstance(sample, BadSample):
                found = {"bad": tuple(bad)} if bad else {}
                return sample | {"seed": point_seed(self.seed, position), "position": position} | found
            bad.append(sample)
            index = among[int(draw.integers(len(among)))]
        return bad[0]

    def _index(self, position: int) -> tuple[int, range]:
        """Return the index of the record at a position, and the indices that may replace it."""
        if self.mixture is not None:
            return self.mixture.sample_at(self.seed, position)
        size = len(self.records)
        epoch, rank_in_epoch = divmod(position, size)
        return int(epoch_order(self.seed, epoch, size)[rank_in_epoch]), range(size)

    def _load(self, index: int, position: int) -> BatchSample | BadSample:
        """Load a record with the augmentation of a position."""
        record = self.records[index]

        def load() -> BatchSample:
            return self.mapping(record, np.random.default_rng((self.seed, _AUGMENT_STREAM, position)))

        return load_with_retry(load, str(record["file_name"]))


class PositionSampler(Sampler[int]):
    """The positions that one process reads: rank, rank + world, rank + 2 * world, ... from a start to an end.

    Args:
        start: first position of the stream, over all processes.
        end: position after the last.
        rank: rank of this process.
        world: number of processes.
    """

    def __init__(self, start: int, end: int, rank: int = 0, world: int = 1) -> None:
        self.positions = range(start + rank, end, world)

    def __iter__(self) -> Iterator[int]:
        """Yield positions in order."""
        return iter(self.positions)

    def __len__(self) -> int:
        """Number of positions of this process."""
        return len(self.positions)


class EvalDataset(Dataset[Any]):
    """A mapped data set in order; a file that fails twice yields a `BadSample`."""

    def __init__(self, records: Sequence[Record], mapping: EvalMapping) -> None:
        self.records = records
        self.mapping = mapping

    def __getitem__(self, index: int) -> BatchSample | BadSample:
        """Return the sample of one record."""
        record = self.records[index]
        return load_with_retry(lambda: self.mapping(record), str(record["file_name"]))

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)


def as_list(batch: list[Any]) -> list[Any]:
    """Return a batch without collating it, as images may differ in size."""
    return batch


@dataclass(frozen=True)
class StreamConfig:
    """The part of the stream that a process reads, and its batches.

    Attributes:
        seed: seed of the run, 0 or more.
        batch_size: B, samples of one iteration over all processes and accumulation steps.
        start_iter: first iteration.
        max_iter: iteration after the last.
        rank: rank of this process.
        world: number of processes.
        accumulation: number of accumulation steps per iteration.

    Raises:
        ValueError: the batch cannot be divided evenly.
    """

    seed: int
    batch_size: int
    start_iter: int
    max_iter: int
    rank: int = 0
    world: int = 1
    accumulation: int = 1

    def __post_init__(self) -> None:
        """Check that the batch can be divided evenly."""
        parts = self.world * self.accumulation
        if self.batch_size < 1 or self.accumulation < 1 or self.batch_size % parts:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {self.batch_size}, which {self.world} process(es) times "
                f"SOLVER.ACCUMULATION_STEPS {self.accumulation} do not divide; choose a multiple of {max(parts, 1)}"
            )

    @property
    def step_size(self) -> int:
        """Number of samples in one accumulation step of one process."""
        return self.batch_size // (self.world * self.accumulation)


def build_train_loader(
    records: Sequence[Record],
    mapping: TrainMapping,
    stream: StreamConfig,
    *,
    num_workers: int,
    mixture: Mixture | None = None,
    pin_memory: bool = False,
    timeout: float = 0,
) -> Batches:
    """Return the training batches of one process, one per accumulation step.

    Args:
        records: the data set, not empty.
        mapping: (record, generator) -> sample.
        stream: the part of the stream.
        num_workers: number of loader workers; 0 loads in this process.
        mixture: see `PositionDataset`.
        pin_memory: pin memory for copies to a GPU.
        timeout: see `Batches`.

    Returns:
        ``accumulation * (max_iter - start_iter)`` batches of ``stream.step_size`` samples.
    """
    sampler = PositionSampler(
        stream.start_iter * stream.batch_size, stream.max_iter * stream.batch_size, stream.rank, stream.world
    )
    loader = DataLoader(
        PositionDataset(records, mapping, stream.seed, mixture),
        batch_size=stream.step_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=as_list,
        pin_memory=pin_memory,
        worker_init_fn=set_up_worker,
        timeout=timeout if num_workers else 0,  # PyTorch raises if there are no workers
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
    """Return the images that one process evaluates, one at a time: rank, rank + world, ...

    Args:
        records: the data set.
        mapping: record -> sample.
        rank: rank of this process.
        world: number of processes.
        num_workers: number of loader workers; 0 loads in this process.
        done: number of first images of this process to skip.
        timeout: see `Batches`.

    Returns:
        batches of one sample.
    """
    loader = DataLoader(
        EvalDataset(records, mapping),
        batch_size=1,
        sampler=range(rank, len(records), world)[done:],
        num_workers=num_workers,
        collate_fn=as_list,
        worker_init_fn=set_up_worker,
        timeout=timeout if num_workers else 0,  # PyTorch raises if there are no workers
    )
    return Batches(loader, timeout)
