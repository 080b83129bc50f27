"""Dask clusters: local processes, or a scheduler that already runs."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask

from generate_pairs.compute.devices import worker_environment
from shards.core.errors import Failed, Refused


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
        "preload": ["generate_pairs.generation.worker"],
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
