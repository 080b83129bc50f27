"""Where work units run: in this process, or on a Dask cluster of local processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

import dask

from shards.errors import Failed


class Pool(Protocol):
    """Runs calls somewhere and yields each as it ends."""

    def run(
        self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]
    ) -> Iterator[Future[Any]]: ...


class InProcess:
    """One call after another, here."""

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Future[Any]]:
        for arguments in calls:
            future: Future[Any] = Future()
            try:
                future.set_result(function(*arguments))
            # Whatever it is, it belongs to this call, as it does on a cluster: who waits for it judges it.
            except Exception as error:
                future.set_exception(error)
            yield future


class OnDask:
    """Calls on a Dask cluster; a worker that dies is replaced and its call runs again elsewhere."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Future[Any]]:
        from distributed import as_completed

        futures = [self.client.submit(function, *arguments, pure=False) for arguments in calls]
        yield from as_completed(futures)


@contextmanager
def pool(workers: int) -> Iterator[Pool]:
    """A pool of `workers` local processes of one thread each; 0 computes in this process.

    Raises:
        Failed: a worker process ended while it was starting.
    """
    if workers == 0:
        yield InProcess()
        return
    from distributed import Client

    quiet = {
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": "60s",
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    }
    with dask.config.set(quiet), _local_cluster(workers) as cluster, Client(cluster) as client:
        yield OnDask(client)


def _local_cluster(workers: int) -> Any:
    from distributed import LocalCluster

    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            preload=["generate_pairs.worker"],
        )
    # So does Dask tell that a worker was killed while it started.
    except RuntimeError as error:
        raise Failed(f"the worker processes did not start: {error} Give the same command again") from error


def default_workers() -> int:
    """One worker for every core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
