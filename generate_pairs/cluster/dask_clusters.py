"""Dask clusters: local processes, or an existing scheduler."""

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
def local_cluster(workers: int, device: str) -> Iterator[Any]:
    """A client of single-threaded worker processes on this machine; with GPUs, each process uses a different one.

    Raises:
        Failed: a worker process ended during start-up.
    """
    from distributed import Client, Nanny, Scheduler, SpecCluster

    quiet = {
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": "60s",
        # If a dead worker is not back after this time, Dask gives it up for good, even if it is just starting again.
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
        # Dask raises this when a worker is killed during start-up.
        except RuntimeError as error:
            raise Failed(f"the worker processes did not start: {error} Run the same command again") from error
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """A client of an existing scheduler.

    Raises:
        Refused: no scheduler answers there.
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
    """Options of a scheduler: a dashboard at any free port, if bokeh is installed."""
    return {"dashboard": _has_dashboard(), "dashboard_address": "127.0.0.1:0"}


def _has_dashboard() -> bool:
    return importlib.util.find_spec("bokeh") is not None


def dashboard_note(client: Any) -> str:
    """The end of a message that gives the dashboard's address; empty without a dashboard."""
    return f", dashboard {client.dashboard_link}" if _has_dashboard() and client.dashboard_link else ""
