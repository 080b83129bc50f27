"""Opens the pool of workers that the settings request: this process, local processes, Slurm jobs or a Dask scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from generate_pairs.cluster.base import InProcessPool, Pool
from generate_pairs.cluster.dask_clusters import connect, dashboard_note, local_cluster
from generate_pairs.cluster.dask_pool import DaskPool
from generate_pairs.cluster.slurm import slurm_cluster
from generate_pairs.config import ClusterConfig
from shards.core.callbacks import Notify


@contextmanager
def open_pool(cluster: ClusterConfig, workers: int, notify: Notify) -> Iterator[Pool]:
    """A pool that exists for the duration of the block; `notify` receives its kind and its dashboard's address.

    `workers` is unused with an existing scheduler; 0 computes in this process.

    Raises:
        Refused: the cluster does not exist.
        Failed: a local worker ended during start-up.
    """
    if cluster.scheduler == "local" and workers == 0:
        yield InProcessPool()
        return
    if cluster.scheduler == "local":
        opened, kind = local_cluster(workers, cluster.device), f"{workers} local workers"
    elif cluster.scheduler == "slurm":
        opened, kind = slurm_cluster(cluster, workers), f"{workers} Slurm jobs"
    else:
        opened, kind = connect(cluster.scheduler), ""
    with opened as client:
        notify((kind or f"{cluster.scheduler}: {len(client.nthreads())} workers") + dashboard_note(client))
        yield DaskPool(client, notify)
