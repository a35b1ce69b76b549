"""Batches from loader workers: bad samples, signals, timeouts, and the end of the workers."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.queues
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _remove_worker_pids  # type: ignore[attr-defined]

from san.d2.processes import stopping
from san.io.errors import one_line

BatchSample = dict[str, Any]
"""One sample in the model's input format."""

WARN_AFTER = 60.0
"""Interval, in seconds, of warnings while waiting for a batch."""

POLL_INTERVAL = 0.5
"""Seconds between checks of how long the main process has waited."""

logger = logging.getLogger("san.d2.batches")


@dataclass(frozen=True)
class BadSample:
    """An error of a data file, sent from a loader worker to the main process without its traceback.

    Attributes:
        error: type of the error.
        message: text of the error.
        file_name: the image of the sample.
    """

    error: type[Exception]
    message: str
    file_name: str = ""


class Batches:
    """The batches of a `DataLoader`, with bad samples handled in the main process.

    A bad sample that was not replaced is raised as its error; those that were replaced are collected. Workers end when
    the iteration ends, for any reason, or with this process.

    Args:
        loader: yields lists of samples.
        timeout: maximum number of seconds to wait for a batch of the workers; 0 waits forever. The loader has the same.
    """

    def __init__(self, loader: DataLoader[Any], timeout: float = 0) -> None:
        self.loader = loader
        self.timeout = timeout
        self._replaced: list[BadSample] = []

    def take_replaced(self) -> list[BadSample]:
        """Return the replaced bad samples of the batches since the last call."""
        taken, self._replaced = self._replaced, []
        return taken

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[list[BatchSample]]:
        """Yield lists of samples.

        Raises:
            ValueError, OSError: the error of a file.
            TimeoutError: the workers sent nothing for `timeout` seconds.
            san.d2.processes.stopping.StopRequested: a stop was requested before a batch arrived.
        """
        source = iter(self.loader)
        watch = _Watch(self.timeout, source)
        end = Finalize(None, _end_processes, args=(source,), exitpriority=0)  # also at the end of this process
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

    def _next(self, source: Iterator[list[BatchSample]], watch: _Watch) -> list[BatchSample] | None:
        """Return the next batch, or None after the last."""
        start = time.monotonic()
        try:
            with watch.waiting(), stopping.waiting():
                return next(source, None)
        except Exception:
            waited = time.monotonic() - start
            if not self.loader.num_workers or not 0 < self.timeout <= waited:
                raise
            raise TimeoutError(
                f"no batch arrived from the {self.loader.num_workers} loader workers for {waited:.0f} s "
                f"(DATALOADER.TIMEOUT {self.timeout:g}): is the file system slow or unavailable, or a worker stopped? "
                "Raise DATALOADER.TIMEOUT (0: no limit), or set DATALOADER.NUM_WORKERS 0 to load in this process"
            ) from None


class _Watch:
    """A thread that logs long waits for loader workers, and kills them at the limit.

    The timeout of `DataLoader` does not cover receiving a tensor from a stopped worker.

    Args:
        limit: seconds; 0 kills nothing.
        source: the iterator of a `DataLoader`; without workers, no thread is started.
    """

    def __init__(self, limit: float, source: Any) -> None:
        self.limit = limit
        self.source = source
        self._since: float | None = None  # start of the wait (`time.monotonic`)
        self._done = threading.Event()
        if getattr(source, "_workers", ()):
            threading.Thread(target=self._run, daemon=True).start()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Context manager that watches the wait for a batch in its body."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def stop(self) -> None:
        """Stop the thread."""
        self._done.set()

    def _run(self) -> None:
        warned = 0
        while not self._done.wait(POLL_INTERVAL):
            since = self._since
            waited = 0.0 if since is None else time.monotonic() - since
            if 0 < self.limit <= waited:
                _end_processes(self.source)
                return
            if waited // WARN_AFTER > warned:
                limit = f"{self.limit:g} s" if self.limit else "0, no limit"
                logger.warning("Waiting for data for %.0f s; DATALOADER.TIMEOUT is %s", waited, limit)
            warned = int(waited // WARN_AFTER)


def _end_processes(source: Any) -> None:
    """End the workers of an iteration, also those that are stopped or ignore SIGTERM.

    Args:
        source: the iterator of a `DataLoader`, which itself only sends SIGTERM and waits.
    """
    workers = [worker for worker in getattr(source, "_workers", ()) if worker.is_alive()]
    if workers and source._worker_pids_set:  # otherwise PyTorch raises when they end, anywhere in the main thread
        _remove_worker_pids(id(source))
        source._worker_pids_set = False
    for worker in workers:
        worker.kill()


def set_up_worker(_: int) -> None:
    """Set up a loader worker: use one thread, as there are many workers, and leave signals to the main process."""
    torch.set_num_threads(1)
    if hasattr(signal, "SIGKILL"):  # not on Windows
        _prctl_pr_set_pdeathsig(signal.SIGKILL)  # end with the main process, even if it is killed
    stopping.ignore_first_signal()
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: Any, error: Exception, item: Any) -> None:
    """Send the error from a worker if a batch cannot be sent; Python would drop the error.

    Args:
        queue: queue to the main process.
        error: the error, for example a full /dev/shm or too many open files.
        item: (index of the batch, batch).
    """
    message = (
        f"a loader worker cannot send its samples ({one_line(error)}); increase /dev/shm, raise the limit "
        "of open files (ulimit -n), or lower DATALOADER.NUM_WORKERS (0 loads in the main process)"
    )
    queue.put((item[0], [BadSample(OSError, message)]))
