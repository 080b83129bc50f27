"""Generates given shards on a pool of workers; one shard's failure does not stop the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from generate_pairs.cluster.base import WorkersDied
from generate_pairs.cluster.open_pool import open_pool
from generate_pairs.cluster.work_queue import WorkQueue
from generate_pairs.compute.devices import chosen_device
from generate_pairs.config import ClusterConfig, TeacherConfig
from generate_pairs.generation.work_units import WorkUnit
from generate_pairs.generation.worker import generate_shard
from generate_pairs.generation.worker_log import last_lines, log_shard
from shards.core.callbacks import Notify, Report, ShouldStop
from shards.core.errors import Failed, OutOfTime, Refused, Stopped, join_first
from shards.dataset.manifest_row import ManifestRow, shard_name
from shards.dataset.replace_shard import Replacement
from shards.format.spec import PairSpec
from shards.storage.paths import Location

_UNIT_LOCK = threading.Lock()
"""A process loads a teacher once, and the teacher has state during a trajectory: a worker's threads take turns."""


@dataclass(frozen=True)
class GenerationSummary:
    """What a generation did; `replaced` has one entry for each replaced shard, in order."""

    num_shards: int
    num_pairs: int
    seconds: float
    replaced: tuple[Replacement, ...] = ()

    @property
    def pairs_per_second(self) -> float:
        return self.num_pairs / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Job:
    """What all units of a generation have in common; sent to the worker with every unit.

    The worker resolves the device `auto`. Without `log_folder` it writes no log.
    """

    root: Location
    spec: PairSpec
    teacher: TeacherConfig
    device: str
    log_folder: Path | None


def run_unit(job: Job, unit: WorkUnit) -> tuple[float, ManifestRow | Replacement]:
    """Generate and commit a unit's shard in this process. Returns the seconds, and what `generate_shard` returns."""
    with _UNIT_LOCK:
        began = time.monotonic()
        with log_shard(job.log_folder, shard_name(unit.shard_index)) if job.log_folder else nullcontext():
            result = generate_shard(job.root, job.spec, job.teacher, unit, chosen_device(job.device))
        return time.monotonic() - began, result


def generate_shards(
    teacher: TeacherConfig,
    root: Location,
    spec: PairSpec,
    units: Sequence[WorkUnit],
    *,
    num_pairs: int,
    workers: int,
    report: Report,
    should_stop: ShouldStop,
    cluster: ClusterConfig | None = None,
    deadline: float | None = None,
    notify: Notify = lambda _: None,
) -> GenerationSummary:
    """Generate these shards on a pool of workers. The other arguments and the errors are those of `generate`.

    If one shard fails, the others are still generated. An error that would affect every shard (a full disk, a folder
    that is not writable, another teacher) ends the work at once.

    Args:
        num_pairs: the total for `report`; pairs outside `units` count as done.
    """
    began, num_made = time.monotonic(), 0
    failures: list[str] = []
    replaced: list[Replacement] = []
    queue = WorkQueue(units, should_stop, deadline)

    def report_progress() -> None:
        done = num_pairs - (len(units) - num_made) * spec.pairs_per_shard
        report(done, num_pairs, f"{len(failures)} failed" if failures else "")

    if units:
        report_progress()
        cluster = cluster or ClusterConfig()
        if cluster.scheduler != "local" or workers:
            cluster = cluster.with_log_folder(root)
        job = _job(teacher, root, spec, cluster)
        num_workers = cluster.jobs if cluster.scheduler == "slurm" else workers
        try:
            with open_pool(cluster, min(num_workers, len(units)), notify) as pool:
                for unit, future in pool.run(partial(run_unit, job), queue):
                    if (error := future.exception()) is not None:
                        failures.append(_failure(unit, error, job.log_folder))
                    else:
                        seconds, result = future.result()
                        num_made += 1
                        queue.record_duration(seconds)
                        replaced += [result] if isinstance(result, Replacement) else []
                    report_progress()
        except Failed as error:
            raise Failed(f"{error}. {num_made} of {len(units)} missing shards in {root} are made and kept") from error
    _raise_if_incomplete(num_made, failures, queue, len(units), root)
    replaced.sort(key=lambda replacement: replacement.row.first_pair)
    return GenerationSummary(num_made, num_made * spec.pairs_per_shard, time.monotonic() - began, tuple(replaced))


def _raise_if_incomplete(
    num_made: int, failures: Sequence[str], queue: WorkQueue[WorkUnit], num_units: int, root: Location
) -> None:
    """Report a stop, the deadline or the shards that could not be generated."""
    failed = f". {len(failures)} could not be made: {join_first(failures)}" if failures else ""
    kept = f"{num_made} of {num_units} missing shards are made and kept{failed}"
    if queue.past_deadline:
        raise OutOfTime(f"the next shard might not end before the time limit; {kept}")
    if queue.is_stopped:
        raise Stopped(kept)
    if failures:
        raise Failed(
            f"{len(failures)} of {num_units} shards in {root} could not be made: {join_first(failures)}. "
            "The others are complete; run the same command again to make the missing ones"
        )


def _job(teacher: TeacherConfig, root: Location, spec: PairSpec, cluster: ClusterConfig) -> Job:
    """The job with absolute paths, so that it is valid on every machine."""
    device = cluster.device
    if device == "auto" and cluster.scheduler == "slurm":
        # The node may have visible GPUs that the job did not request.
        device = "cuda" if cluster.gpus else "cpu"
    logs = Path(cluster.log_folder) if cluster.log_folder else None
    return Job(root.absolute(), spec, teacher.with_absolute_path(), device, logs)


def _failure(unit: WorkUnit, error: BaseException, log_folder: Path | None) -> str:
    """The shard's name and why it could not be generated.

    Raises:
        Refused, Failed: the error would affect every shard.
    """
    if isinstance(error, Refused):
        raise error
    if isinstance(error, Failed | OSError | ImportError):
        raise Failed(str(error)) from error
    name = shard_name(unit.shard_index)
    reason = f"{name}: {str(error) or repr(error)}"
    if not isinstance(error, WorkersDied) or log_folder is None:
        return reason
    log = last_lines(log_folder, name)
    if log is None:
        return f"{reason}; their logs are in {log_folder} on the machines they ran on"
    path, lines = log
    return f"{reason}; {path} ends: {' | '.join(line.strip() for line in lines)}"
