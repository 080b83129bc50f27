"""Batches made ahead of their use by worker processes, and handed over in their order."""

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
"""So often a worker looks whether there is still someone to read for."""


class PrefetchedBatches(Iterator[PairBatch]):
    """The batches from some number on, the same whatever the number of workers.

    What a worker cannot make is raised where that batch would have been handed over, and as it is without workers.
    """

    def __init__(
        self, batches: PairBatches, first: int, num_workers: int, prefetch: int, pin_memory: bool
    ) -> None:
        """Starts the workers.

        Args:
            batches: what is loaded; each worker gets a copy.
            first: number of the first batch.
            num_workers: how many processes, at least 1.
            prefetch: how many batches each makes ahead.
            pin_memory: put batches where a GPU can copy from while the CPU goes on.
        """
        with warnings.catch_warnings(), without_sigchld_handler():
            # More workers than cores is what remote shards want: most of them wait.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            self._outcomes: Any = iter(_loader(batches, first, num_workers, prefetch, pin_memory))

    def __next__(self) -> PairBatch:
        try:
            outcome = next(self._outcomes)
        except (RuntimeError, EOFError, ConnectionError) as error:
            # A batch that a worker made before it died cannot be had from it any more.
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
        """Ends the workers."""
        # There is no public way; letting go of it is none while a traceback holds it.
        self._outcomes._shutdown_workers()


@contextmanager
def without_sigchld_handler() -> Iterator[None]:
    """Takes torch's handler of SIGCHLD away again: it would raise in the middle of whatever the parent is at."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _loader(
    batches: PairBatches, first: int, num_workers: int, prefetch: int, pin_memory: bool
) -> DataLoader[PairBatch | Failed | Refused]:
    return DataLoader(
        _Outcomes(batches),
        batch_size=None,
        sampler=range(first, sys.maxsize),
        num_workers=num_workers,
        prefetch_factor=prefetch,
        pin_memory=pin_memory,
        worker_init_fn=_obey_parent_alone,
        # Its own, or it would draw from the generator that everything else draws from.
        generator=torch.Generator(),
    )


class _Outcomes(Dataset["PairBatch | Failed | Refused"]):
    """Batches, and what people should read about those that cannot be made, as values.

    Raised in a worker, an exception would come out with that worker's traceback as its message.
    """

    def __init__(self, batches: PairBatches) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> PairBatch | Failed | Refused:
        try:
            return self._batches[number]
        except (Failed, Refused) as error:
            return error


def _obey_parent_alone(worker: int) -> None:
    """A signal to all processes of a job is for the one that trains: it stops after its step, then ends the others."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent asks for it, or is gone: torch overlooks one that went before it first looked."""
    # Not by `getppid`: where a server forks the workers, that is the server.
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        asked = signal.sigtimedwait([signal.SIGTERM], ORPHANED_SECONDS)
        if asked is not None and asked.si_pid == parent.pid:
            break
    os._exit(0)
