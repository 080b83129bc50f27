"""Where work units run: in this process, or on a Dask cluster: local processes, Slurm jobs, or anyone's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from generate_pairs.cluster.base import InProcess, Pool
from generate_pairs.cluster.dask_clusters import _connected, _local_cluster, _watched
from generate_pairs.cluster.dask_pool import OnDask
from generate_pairs.config import ClusterConfig
from shards.core.callbacks import Notify


@contextmanager
def pool(cluster: ClusterConfig, workers: int, notify: Notify) -> Iterator[Pool]:
    """Where units run while the block does.

    Args:
        cluster: local processes, Slurm jobs, or the address of a Dask scheduler.
        workers: how many; 0 computes in this process. A scheduler that runs has its own number.
        notify: hears what it is and where it can be watched.

    Raises:
        Refused: there is no such cluster.
    """
    if cluster.scheduler == "local" and workers == 0:
        yield InProcess()
        return
    from distributed import Client

    if cluster.scheduler == "local":
        with _local_cluster(workers, cluster.device) as local, Client(local) as client:
            notify(f"{workers} local workers{_watched(client)}")
            yield OnDask(client, notify)
    elif cluster.scheduler == "slurm":
        from generate_pairs.cluster.slurm import slurm_cluster

        with slurm_cluster(cluster, workers) as jobs, Client(jobs) as client:
            notify(f"{workers} Slurm jobs{_watched(client)}")
            yield OnDask(client, notify)
    else:
        with _connected(cluster.scheduler) as client:
            notify(f"{cluster.scheduler}: {len(client.nthreads())} workers{_watched(client)}")
            yield OnDask(client, notify)
