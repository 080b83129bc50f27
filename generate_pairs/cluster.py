"""Where work units run: in this process, or on a Dask cluster: local processes, Slurm jobs, or anyone's."""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

import dask

from generate_pairs.config import ClusterConfig
from generate_pairs.devices import worker_environment
from generate_pairs.hand_out import HandOut
from shards.core.callbacks import Tell
from shards.core.errors import Failed, Refused

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 30.0
"""For so long a cluster may be without workers before a person is told."""

Unit = TypeVar("Unit")


class WorkersDied(Exception):
    """Every worker that was given this unit died."""


class Pool(Protocol):
    """Runs units somewhere, as long as they are handed out, and yields each as it ends."""

    def run(
        self, work: Callable[[Unit], Any], hand_out: HandOut[Unit]
    ) -> Iterator[tuple[Unit, Future[Any]]]: ...


class InProcess:
    """One unit after another, here."""

    def run(self, work: Callable[[Unit], Any], hand_out: HandOut[Unit]) -> Iterator[tuple[Unit, Future[Any]]]:
        while (unit := hand_out.take()) is not None:
            future: Future[Any] = Future()
            try:
                future.set_result(work(unit))
            # Whatever it is, it belongs to this unit, as it does on a cluster: who waits for it judges it.
            except Exception as error:
                future.set_exception(error)
            yield unit, future


class OnDask:
    """Units on a Dask cluster; one whose worker dies runs again elsewhere, until it has cost several workers.

    Every worker has one unit at a time and none in reserve. So what is asked to stop ends with the units under way,
    and Dask, which blames a death on all units that the dead worker held, blames the one that ran.
    """

    def __init__(self, client: Any, tell: Tell) -> None:
        self.client, self.tell = client, tell

    def run(self, work: Callable[[Unit], Any], hand_out: HandOut[Unit]) -> Iterator[tuple[Unit, Future[Any]]]:
        ended: SimpleQueue[Any] = SimpleQueue()
        under_way: dict[Any, Unit] = {}
        census = Census(self.client, self.tell)
        while (under_way or not hand_out.is_over) and not hand_out.is_abandoned:
            num_workers = census.count()
            while len(under_way) < num_workers and (unit := hand_out.take()) is not None:
                submitted = self.client.submit(work, unit, pure=False)
                under_way[submitted] = unit
                submitted.add_done_callback(ended.put)
            # Dask's client sends one message in 10 ms, and to let go of a unit is one: sent right before the next unit
            # is submitted, it would keep that waiting.
            done = None
            try:
                done = ended.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            yield under_way.pop(done), self._outcome(done)

    def _outcome(self, done: Any) -> Future[Any]:
        from distributed.scheduler import KilledWorker

        outcome: Future[Any] = Future()
        try:
            error = done.exception()
            result = done.result() if error is None else None
        except (OSError, CancelledError) as gone:
            raise lost(self.client) from gone
        # Nobody here cancels anything: the connection did, and with it went all that was under way.
        if isinstance(error, CancelledError):
            raise lost(self.client)
        if isinstance(error, KilledWorker):
            error = WorkersDied(f"{error.allowed_failures + 1} workers died making it")
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)
        return outcome


class Census:
    """How many workers a cluster has: asked now and then, and told when it has had none for long."""

    def __init__(self, client: Any, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self.client, self.tell, self.clock = client, tell, clock
        self._number = 0
        self._last_asked = -math.inf
        self._last_seen: float | None = clock()

    def count(self) -> int:
        """The workers there are, or were half a second ago.

        Raises:
            Failed: the scheduler does not answer.
        """
        now = self.clock()
        if now - self._last_asked < POLL_SECONDS:
            return self._number
        try:
            self._number, self._last_asked = len(self.client.nthreads()), now
        except (OSError, CancelledError) as error:
            raise lost(self.client) from error
        if self._number:
            self._last_seen = now
        elif self._last_seen is not None and now - self._last_seen > PATIENCE_SECONDS:
            self.tell(f"{_named(self.client)} has no workers; waiting for some")
            self._last_seen = None
        return self._number


def lost(client: Any) -> Failed:
    """What ends the work when a client's scheduler is gone."""
    return Failed(f"{_named(client)} is lost")


def _named(client: Any) -> str:
    return f"the Dask scheduler at {client.scheduler.address}"


@contextmanager
def pool(cluster: ClusterConfig, workers: int, tell: Tell) -> Iterator[Pool]:
    """Where units run while the block does.

    Args:
        cluster: local processes, Slurm jobs, or the address of a Dask scheduler.
        workers: how many; 0 computes in this process. A scheduler that runs has its own number.
        tell: hears what it is and where it can be watched.

    Raises:
        Refused: there is no such cluster.
    """
    if cluster.scheduler == "local" and workers == 0:
        yield InProcess()
        return
    from distributed import Client

    if cluster.scheduler == "local":
        with _local_cluster(workers, cluster.device) as local, Client(local) as client:
            tell(f"{workers} local workers{_watched(client)}")
            yield OnDask(client, tell)
    elif cluster.scheduler == "slurm":
        from generate_pairs.slurm import slurm_cluster

        with slurm_cluster(cluster, workers) as jobs, Client(jobs) as client:
            tell(f"{workers} Slurm jobs{_watched(client)}")
            yield OnDask(client, tell)
    else:
        with _connected(cluster.scheduler) as client:
            tell(f"{cluster.scheduler}: {len(client.nthreads())} workers{_watched(client)}")
            yield OnDask(client, tell)


@contextmanager
def _local_cluster(workers: int, device: str) -> Iterator[Any]:
    """Processes of this machine, one thread each; with GPUs each sees one of them alone.

    Raises:
        Failed: a worker process ended while it was starting.
    """
    from distributed import Nanny, Scheduler, SpecCluster

    quiet = {
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": "60s",
        # Dask gives a worker up for good that is not there this long after it died, even one that is just starting again.
        "distributed.deploy.lost-worker-timeout": "365 days",
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    }
    options = {
        "host": "127.0.0.1",
        "nthreads": 1,
        "memory_limit": 0,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
        "preload": ["generate_pairs.worker"],
    }
    specs = {
        worker: {"cls": Nanny, "options": {**options, "env": worker_environment(device, worker)}}
        for worker in range(workers)
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **dashboard_options()}}
    with dask.config.set(quiet):
        try:
            cluster = SpecCluster(workers=specs, scheduler=scheduler, silence_logs=logging.CRITICAL)
        # So does Dask tell that a worker was killed while it started.
        except RuntimeError as error:
            raise Failed(
                f"the worker processes did not start: {error} Give the same command again"
            ) from error
        with cluster:
            yield cluster


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """A client of a scheduler that someone else runs.

    Raises:
        Refused: none answers there.
    """
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    with silence_logging_cmgr(logging.CRITICAL):
        try:
            client = Client(address)
        except OSError as error:
            raise Refused(
                f"no Dask scheduler answers at {address}: start one with `dask scheduler` and its workers with "
                f"`dask worker {address} --nthreads 1`"
            ) from error
        with client:
            yield client


def dashboard_options() -> dict[str, Any]:
    """A scheduler's: a dashboard where its library is installed, at whatever port is free."""
    return {"dashboard": _has_dashboard(), "dashboard_address": "127.0.0.1:0"}


def _has_dashboard() -> bool:
    return importlib.util.find_spec("bokeh") is not None


def _watched(client: Any) -> str:
    return f", dashboard {client.dashboard_link}" if _has_dashboard() and client.dashboard_link else ""
