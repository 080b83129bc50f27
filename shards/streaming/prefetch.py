"""Batches that worker processes make in advance, returned in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from shards.core.errors import Failed, Refused
from shards.streaming.batches import PairBatch, PairBatches

ORPHANED_SECONDS = 1.0
"""How often a worker checks that its parent still runs."""


class PrefetchedBatches(Iterator[PairBatch]):
    """The batches from a given number on; the same for any number of workers.

    An error in a worker is raised in place of its batch, with the same type and message as without workers.
    """

    def __init__(self, batches: PairBatches, first: int, num_workers: int, prefetch: int, pin_memory: bool) -> None:
        """Start the workers, each with a copy of the mapping `batches`."""
        with warnings.catch_warnings(), without_sigchld_handler():
            # More workers than cores are useful for remote shards: most of them wait for the network.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            outcomes = DataLoader(
                _Outcomes(batches),
                batch_size=None,
                sampler=range(first, sys.maxsize),
                num_workers=num_workers,
                prefetch_factor=prefetch,
                pin_memory=pin_memory,
                worker_init_fn=_obey_parent_alone,
                # The default would draw a number from the global generator.
                generator=torch.Generator(),
            )
            self._outcomes: Any = iter(outcomes)

    def __next__(self) -> PairBatch:
        try:
            outcome = next(self._outcomes)
        except (RuntimeError, EOFError, ConnectionError) as error:
            # A dead worker takes the batches it has made along.
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            raise Failed(
                "a process that reads pairs died; run the same command again, "
                "with fewer workers if it was killed for its memory"
            ) from error
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Stop the workers."""
        # torch has no public method for this; deleting the iterator fails while a traceback refers to it.
        self._outcomes._shutdown_workers()


@contextmanager
def without_sigchld_handler() -> Iterator[None]:
    """Restore the SIGCHLD handler: the one that torch installs raises at an arbitrary point of the parent's code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


class _Outcomes(Dataset["PairBatch | Failed | Refused"]):
    """Batches, or the error in place of a batch, as values.

    DataLoader replaces the message of an exception raised in a worker by that worker's traceback.
    """

    def __init__(self, batches: PairBatches) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> PairBatch | Failed | Refused:
        try:
            return self._batches[number]
        except (Failed, Refused) as error:
            return error


def _obey_parent_alone(worker: int) -> None:
    """Ignore signals that a job sends to all processes: the parent stops after its step, and stops the workers then."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent sends SIGTERM or is gone: torch's check misses one that died before the worker started."""
    # Not with `getppid`: under the forkserver start method it returns the server.
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        received = signal.sigtimedwait([signal.SIGTERM], ORPHANED_SECONDS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
