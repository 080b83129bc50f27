"""Generates given shards on a pool of workers; one shard's failure does not stop the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
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
from shards.core.errors import Failed, OutOfTime, Refused, Stopped
from shards.dataset.manifest_row import shard_name
from shards.dataset.replace_shard import Replacement
from shards.format.spec import PairSpec
from shards.storage.paths import Location

LISTED_FAILURES = 5

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

    Attributes:
        root: the data set's folder.
        spec: its spec.
        teacher: the teacher and its sampling settings.
        device: as in the settings; the worker resolves `auto`.
        log_folder: folder of the worker's log; None for no log.
    """

    root: Location
    spec: PairSpec
    teacher: TeacherConfig
    device: str
    log_folder: Path | None


@dataclass(frozen=True)
class Outcome:
    """The result of one unit: its duration and, if it replaces a shard, the comparison with the old shard."""

    seconds: float
    replacement: Replacement | None


@dataclass
class _Progress:
    """Counts of the units that have ended."""

    num_made: int = 0
    failures: list[str] = field(default_factory=list)
    replaced: list[Replacement] = field(default_factory=list)


def run_unit(job: Job, unit: WorkUnit) -> Outcome:
    """Generate and commit a unit's shard in this process."""
    with _UNIT_LOCK:
        began = time.monotonic()
        with log_shard(job.log_folder, shard_name(unit.shard_index)) if job.log_folder else nullcontext():
            result = generate_shard(job.root, job.spec, job.teacher, unit, chosen_device(job.device))
        return Outcome(time.monotonic() - began, result if isinstance(result, Replacement) else None)


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
    """Generate these shards on a pool of workers.

    If one shard fails, the others are still generated. An error that would affect every shard (a full disk, a folder
    that is not writable, another teacher) ends the work at once.

    Args:
        teacher: the teacher and its sampling settings.
        root: the data set's folder.
        spec: its spec.
        units: the shards to generate.
        num_pairs: the total for `report`; pairs outside `units` count as done.
        workers: as in `generate`, like the remaining arguments and the errors.
    """
    began = time.monotonic()
    progress, size = _Progress(), spec.pairs_per_shard
    queue = WorkQueue(units, should_stop, deadline)
    if units:

        def report_progress() -> None:
            done = num_pairs - (len(units) - progress.num_made) * size
            report(done, num_pairs, f"{len(progress.failures)} failed" if progress.failures else "")

        report_progress()
        cluster = cluster or ClusterConfig()
        if cluster.scheduler != "local" or workers:
            cluster = cluster.with_log_folder(root)
        job = _job(teacher, root, spec, cluster)
        num_workers = cluster.jobs if cluster.scheduler == "slurm" else workers
        try:
            with open_pool(cluster, min(num_workers, len(units)), notify) as pool:
                for unit, future in pool.run(partial(run_unit, job), queue):
                    _record(progress, queue, job, unit, future)
                    report_progress()
        except Failed as error:
            raise Failed(
                f"{error}. {progress.num_made} of {len(units)} missing shards in {root} are made and kept"
            ) from error
    _raise_if_incomplete(progress, queue, len(units), root)
    replaced = sorted(progress.replaced, key=lambda replacement: replacement.row.first_pair)
    return GenerationSummary(progress.num_made, progress.num_made * size, time.monotonic() - began, tuple(replaced))


def _record(progress: _Progress, queue: WorkQueue[WorkUnit], job: Job, unit: WorkUnit, future: Future[Outcome]) -> None:
    """Count a unit that has ended. Raises as `_failure`."""
    if (failure := _failure(unit, future, job)) is not None:
        progress.failures.append(failure)
        return
    outcome = future.result()
    progress.num_made += 1
    queue.record_duration(outcome.seconds)
    if outcome.replacement is not None:
        progress.replaced.append(outcome.replacement)


def _raise_if_incomplete(progress: _Progress, queue: WorkQueue[WorkUnit], num_units: int, root: Location) -> None:
    """End a generation that did not generate all units.

    Raises:
        OutOfTime: the next shard might end after the deadline.
        Stopped: a stop was requested.
        Failed: some shards could not be generated.
    """
    failures = progress.failures
    failed = f". {len(failures)} could not be made: {join_first(failures)}" if failures else ""
    kept = f"{progress.num_made} of {num_units} missing shards are made and kept{failed}"
    if queue.past_deadline:
        raise OutOfTime(f"the next shard might not end before the time limit; {kept}")
    if queue.is_stopped:
        raise Stopped(kept)
    if failures:
        raise Failed(
            f"{len(failures)} of {num_units} shards in {root} could not be made: {join_first(failures)}. "
            "The others are complete; run the same command again to make the missing ones"
        )


def join_first(failures: Sequence[str]) -> str:
    """The first failures, then the number of the others: many failures usually have few causes."""
    more = len(failures) - LISTED_FAILURES
    return "; ".join(failures[:LISTED_FAILURES]) + (f"; and {more} more" if more > 0 else "")


def _job(teacher: TeacherConfig, root: Location, spec: PairSpec, cluster: ClusterConfig) -> Job:
    """The job with absolute paths, so that it is valid on every machine."""
    device = cluster.device
    if device == "auto" and cluster.scheduler == "slurm":
        # The node may have visible GPUs that the job did not request.
        device = "cuda" if cluster.gpus else "cpu"
    logs = Path(cluster.log_folder) if cluster.log_folder else None
    return Job(root.absolute(), spec, teacher.with_absolute_path(), device, logs)


def _failure(unit: WorkUnit, future: Future[Outcome], job: Job) -> str | None:
    """The shard's name and why it could not be generated; None after success.

    Raises:
        Refused, Failed: the error would affect every shard.
    """
    match future.exception():
        case None:
            return None
        case Refused() as refusal:
            raise refusal
        case Failed() | OSError() | ImportError() as error:
            raise Failed(str(error)) from error
        case failure:
            reason = str(failure) or repr(failure)
    name = shard_name(unit.shard_index)
    if not isinstance(failure, WorkersDied) or job.log_folder is None:
        return f"{name}: {reason}"
    log = last_lines(job.log_folder, name)
    if log is None:
        return f"{name}: {reason}; their logs are in {job.log_folder} on the machines they ran on"
    path, lines = log
    return f"{name}: {reason}; {path} ends: {' | '.join(line.strip() for line in lines)}"
