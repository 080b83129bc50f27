"""Opens the pool of workers that the settings request: this process, local processes, Slurm jobs or a Dask scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from generate_pairs.cluster.base import InProcessPool, Pool
from generate_pairs.cluster.dask_clusters import connect, dashboard_note, local_cluster
from generate_pairs.cluster.dask_pool import DaskPool
from generate_pairs.config import ClusterConfig
from shards.core.callbacks import Notify


@contextmanager
def open_pool(cluster: ClusterConfig, workers: int, notify: Notify) -> Iterator[Pool]:
    """A pool that exists for the duration of the block.

    Args:
        cluster: local processes, Slurm jobs, or the address of a Dask scheduler.
        workers: number of workers; 0 computes in this process. Unused with an existing scheduler.
        notify: receives the kind of pool and its dashboard's address.

    Raises:
        Refused: the cluster does not exist.
        Failed: a local worker ended during start-up.
    """
    if cluster.scheduler == "local" and workers == 0:
        yield InProcessPool()
        return
    from distributed import Client

    if cluster.scheduler == "local":
        with local_cluster(workers, cluster.device) as local, Client(local) as client:
            notify(f"{workers} local workers{dashboard_note(client)}")
            yield DaskPool(client, notify)
    elif cluster.scheduler == "slurm":
        from generate_pairs.cluster.slurm import slurm_cluster

        with slurm_cluster(cluster, workers) as jobs, Client(jobs) as client:
            notify(f"{workers} Slurm jobs{dashboard_note(client)}")
            yield DaskPool(client, notify)
    else:
        with connect(cluster.scheduler) as client:
            notify(f"{cluster.scheduler}: {len(client.nthreads())} workers{dashboard_note(client)}")
            yield DaskPool(client, notify)
