"""Between loading processes and the main one: bad samples, signals, waiting with a limit, how the processes end."""

from __future__ import annotations

import logging
import multiprocessing.queues
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _remove_worker_pids  # type: ignore[attr-defined]

from san.d2 import stopping
from san.errors import one_line

Sample = dict[str, Any]
"""One sample as the model takes it."""

WARN_AFTER = 60.0
"""Seconds of waiting for a batch after which a warning is logged, and again each time."""

logger = logging.getLogger("san.d2.batches")


@dataclass(frozen=True)
class BadSample:
    """An error made by a data file, carried from a loading worker to the main process without its stack trace.

    Attributes:
        error: its type.
        message: its text.
        file_name: the image of the sample.
    """

    error: type[Exception]
    message: str
    file_name: str = ""


class Batches:
    """The batches of a `DataLoader`, whose bad samples are reported here, in the main process.

    One that was not replaced is raised as the one-line error it is; those that were replaced are collected. Loading
    processes end with the iteration, whatever ended it, or else with this process.

    Args:
        loader: gives lists of samples; its ``timeout`` is set.
        timeout: seconds that a batch may take to come from loading processes; 0 waits for ever.
    """

    def __init__(self, loader: DataLoader[Any], timeout: float = 0) -> None:
        self.loader = loader
        self.timeout = timeout
        self._replaced: list[BadSample] = []

    def take_replaced(self) -> list[BadSample]:
        """The bad samples of the batches given since the last call, for which others were given."""
        taken, self._replaced = self._replaced, []
        return taken

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Sample]]:
        """Yields lists of samples.

        Raises:
            ValueError, OSError: what a file did wrong.
            TimeoutError: loading processes gave nothing for `timeout` seconds.
            san.d2.stopping.StopRequested: the process was asked to stop before a batch came.
        """
        if self.loader.num_workers:
            self.loader.timeout = min(self.timeout or WARN_AFTER, WARN_AFTER)
        source = iter(self.loader)
        end = Finalize(None, _end_processes, args=(source,), exitpriority=0)  # at the end of this process too
        try:
            while (batch := self._next(source)) is not None:
                for sample in batch:
                    if isinstance(sample, BadSample):
                        raise sample.error(sample.message)
                    self._replaced += sample.pop("bad", ())
                yield batch
        finally:
            end()

    def _next(self, source: Iterator[list[Sample]]) -> list[Sample] | None:
        """The next batch; None after the last."""
        start = time.monotonic()
        while True:
            try:
                with stopping.waiting():
                    return next(source, None)
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
            waited = time.monotonic() - start
            if self.timeout and waited >= self.timeout:
                raise TimeoutError(
                    f"no batch came from the {self.loader.num_workers} loading processes for {waited:.0f} s "
                    f"(DATALOADER.TIMEOUT {self.timeout:g}): is the file system slow or gone, or a process stopped? "
                    "Raise DATALOADER.TIMEOUT (0: no limit), or set DATALOADER.NUM_WORKERS 0 to load in this process"
                ) from None
            logger.warning(
                "Waiting for data for %.0f s; DATALOADER.TIMEOUT is %s",
                waited,
                f"{self.timeout:g} s" if self.timeout else "0, no limit",
            )


def _end_processes(source: Any) -> None:
    """Ends the loading processes of an iteration, also those that are stopped or do not react to SIGTERM.

    Args:
        source: the iterator of a `DataLoader`, whose own way is SIGTERM, and to wait.
    """
    workers = [worker for worker in getattr(source, "_workers", ()) if worker.is_alive()]
    if workers and source._worker_pids_set:  # else PyTorch raises an error where they end
        _remove_worker_pids(id(source))
        source._worker_pids_set = False
    for worker in workers:
        worker.kill()


def set_up_worker(_: int) -> None:
    """A loading worker uses one thread, as the workers are the parallelism, and leaves signals to the main process."""
    torch.set_num_threads(1)
    stopping.leave_to_main_process()
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: Any, error: Exception, item: Any) -> None:
    """In a loading worker: sends the error instead of a batch that cannot be sent; Python would drop the batch.

    Args:
        queue: to the main process.
        error: such as that of a full /dev/shm, or of too many open files.
        item: pair of the batch's number and the batch.
    """
    message = (
        f"a loading process cannot hand over its samples ({one_line(error)}); give /dev/shm more room, raise the limit "
        "of open files (ulimit -n), or lower DATALOADER.NUM_WORKERS (0 loads in the main process)"
    )
    queue.put((item[0], [BadSample(OSError, message)]))
