"""Between loading processes and the main one: bad samples, signals, waiting with a limit, how the processes end."""

from __future__ import annotations

import logging
import multiprocessing.process
import multiprocessing.queues
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _remove_worker_pids  # type: ignore[attr-defined]

from san.d2.processes import stopping
from san.errors import one_line

Sample = dict[str, Any]
"""One sample as the model takes it."""

WARN_AFTER = 60.0
"""Seconds of waiting for a batch after which a warning is logged, and again each time."""

LOOK_EVERY = 0.5
"""Seconds between two looks at how long the main process has waited."""

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
            san.d2.processes.stopping.StopRequested: the process was asked to stop before a batch came.
        """
        if self.loader.num_workers:
            self.loader.timeout = self.timeout
        source = iter(self.loader)
        watch = _Watch(self.timeout, getattr(source, "_workers", []))  # of the processes, where there are any
        end = Finalize(None, _end_processes, args=(source,), exitpriority=0)  # at the end of this process too
        try:
            while (batch := self._next(source, watch)) is not None:
                for sample in batch:
                    if isinstance(sample, BadSample):
                        raise sample.error(sample.message)
                    self._replaced += sample.pop("bad", ())
                yield batch
        finally:
            watch.stop()
            end()

    def _next(self, source: Iterator[list[Sample]], watch: _Watch) -> list[Sample] | None:
        """The next batch; None after the last."""
        start = watch.since = time.monotonic()
        try:
            with stopping.waiting():
                return next(source, None)
        except Exception:
            waited = time.monotonic() - start
            if not self.loader.num_workers or not 0 < self.timeout <= waited:
                raise
            raise TimeoutError(
                f"no batch came from the {self.loader.num_workers} loading processes for {waited:.0f} s "
                f"(DATALOADER.TIMEOUT {self.timeout:g}): is the file system slow or gone, or a process stopped? "
                "Raise DATALOADER.TIMEOUT (0: no limit), or set DATALOADER.NUM_WORKERS 0 to load in this process"
            ) from None
        finally:
            watch.since = None


class _Watch:
    """A thread that logs long waiting for loading processes, and kills them at the limit.

    A `DataLoader` has a limit of its own, but not while it takes over a tensor from a process that is stopped.

    Args:
        limit: seconds; 0 kills nothing.
        workers: the processes; without any there is no thread.
    """

    since: float | None = None
    """When the waiting began, of `time.monotonic`; None while nobody waits."""

    def __init__(self, limit: float, workers: Sequence[multiprocessing.process.BaseProcess]) -> None:
        self.limit = limit
        self.workers = workers
        self._done = threading.Event()
        if workers:
            threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Ends the thread."""
        self._done.set()

    def _run(self) -> None:
        warned = 0
        while not self._done.wait(LOOK_EVERY):
            since = self.since
            waited = 0.0 if since is None else time.monotonic() - since
            if 0 < self.limit <= waited:
                for worker in self.workers:
                    worker.kill()
                return
            if waited // WARN_AFTER > warned:
                limit = f"{self.limit:g} s" if self.limit else "0, no limit"
                logger.warning("Waiting for data for %.0f s; DATALOADER.TIMEOUT is %s", waited, limit)
            warned = int(waited // WARN_AFTER)


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
    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # where the main process is killed, and this one may be stopped
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
