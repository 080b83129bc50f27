"""Make given shards on a pool of workers: what a mishap costs, and what ends the work at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from generate_pairs.cluster.base import WorkersDied
from generate_pairs.cluster.open_pool import pool
from generate_pairs.cluster.work_queue import WorkQueue
from generate_pairs.compute.devices import chosen_device
from generate_pairs.config import ClusterConfig, TeacherConfig
from generate_pairs.generation.work_units import WorkUnit
from generate_pairs.generation.worker import generate_shard
from generate_pairs.generation.worker_log import last_lines, logged
from shards.core.callbacks import Notify, Report, ShouldStop
from shards.core.errors import Failed, OutOfTime, Refused, Stopped
from shards.dataset.manifest_row import shard_name
from shards.dataset.replace_shard import Replacement
from shards.format.spec import PairSpec
from shards.storage.paths import Location

LISTED_FAILURES = 5

_ONE_AT_A_TIME = threading.Lock()
"""A teacher is loaded once in a process and keeps its state while it walks: threads of a worker take turns."""


@dataclass(frozen=True)
class GenerationSummary:
    """What a generation did; `replaced` tells of the shards that replaced others, by their place."""

    num_shards: int
    num_pairs: int
    seconds: float
    replaced: tuple[Replacement, ...] = ()

    @property
    def pairs_per_second(self) -> float:
        return self.num_pairs / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Job:
    """What all units of a generation have in common; it goes to the worker with every one of them.

    Attributes:
        root: the data set's folder.
        spec: its spec.
        teacher: where the teacher is and how it samples.
        device: as in the settings; `auto` is for the worker to find out.
        log_folder: where the worker keeps its log; None for no log.
    """

    root: Location
    spec: PairSpec
    teacher: TeacherConfig
    device: str
    log_folder: Path | None


@dataclass(frozen=True)
class Outcome:
    """What came of a unit: how long it took, and of one that replaces a shard, how the new one compares."""

    seconds: float
    replaced: Replacement | None


def run_unit(job: Job, unit: WorkUnit) -> Outcome:
    """Make and commit a unit's shard in this process."""
    with _ONE_AT_A_TIME:
        began = time.monotonic()
        with logged(job.log_folder, shard_name(unit.shard_index)) if job.log_folder else nullcontext():
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
    """Make these shards, on a pool of workers.

    A mishap of one shard leaves the others alone. What is wrong with the surroundings (a full disk, a folder
    that cannot be written to, another teacher) would befall every shard and ends the work at once.

    Args:
        teacher: where the teacher is and how it samples.
        root: the data set's folder.
        spec: its spec.
        units: what is to be made.
        num_pairs: what counts as all for `report`; pairs that are in no unit count as done.
        workers: as in `generate`, and so are the others and the errors.
    """
    began = time.monotonic()
    cluster = cluster or ClusterConfig()
    size = spec.pairs_per_shard
    done_before = num_pairs - len(units) * size
    made, failures, replaced = 0, list[str](), list[Replacement]()
    queue = WorkQueue(units, should_stop, deadline)
    if units:
        report(done_before, num_pairs, "")
        if cluster.scheduler != "local" or workers:
            cluster = cluster.logging_into(root)
        job = _job(teacher, root, spec, cluster)
        try:
            with pool(cluster, min(_num_workers(cluster, workers), len(units)), notify) as running:
                for unit, future in running.run(partial(run_unit, job), queue):
                    if (failure := _failure(unit, future, job)) is not None:
                        failures.append(failure)
                    else:
                        made += 1
                        outcome = future.result()
                        queue.record_duration(outcome.seconds)
                        replaced += [outcome.replaced] if outcome.replaced else []
                    note = f"{len(failures)} failed" if failures else ""
                    report(done_before + made * size, num_pairs, note)
        except Failed as error:
            raise Failed(
                f"{error}. {made} of {len(units)} missing shards in {root} are made and kept"
            ) from error
    _end_early(queue, f"{made} of {len(units)} missing shards are made and kept", failures)
    if failures:
        raise Failed(
            f"{len(failures)} of {len(units)} shards in {root} could not be made: {join_first(failures)}. "
            "The rest are done; the same command makes what is missing"
        )
    replaced.sort(key=lambda one: one.row.first_pair)
    return GenerationSummary(made, made * size, time.monotonic() - began, tuple(replaced))


def _end_early(queue: WorkQueue, kept: str, failures: Sequence[str]) -> None:
    """Ends a generation that did not hand out all units.

    Raises:
        Stopped: a stop was asked for.
        OutOfTime: the next shard would have ended too late.
    """
    failed = f". {len(failures)} could not be made: {join_first(failures)}" if failures else ""
    if queue.past_deadline:
        raise OutOfTime(f"the next shard might not end before the time limit; {kept}{failed}")
    if queue.is_stopped:
        raise Stopped(f"{kept}{failed}")


def join_first(failures: Sequence[str]) -> str:
    """The first mishaps in full: a thousand of them have few reasons."""
    more = len(failures) - LISTED_FAILURES
    return "; ".join(failures[:LISTED_FAILURES]) + (f"; and {more} more" if more > 0 else "")


def _job(teacher: TeacherConfig, root: Location, spec: PairSpec, cluster: ClusterConfig) -> Job:
    """The job as a worker on any machine understands it: with whole paths, where they are paths."""
    device = cluster.device
    if device == "auto" and cluster.scheduler == "slurm":
        # A GPU that the job did not ask for may be seen there, but is somebody else's.
        device = "cuda" if cluster.gpus else "cpu"
    logs = Path(cluster.log_folder) if cluster.log_folder else None
    return Job(root.absolute(), spec, teacher.with_absolute_path(), device, logs)


def _num_workers(cluster: ClusterConfig, workers: int) -> int:
    return cluster.jobs if cluster.scheduler == "slurm" else workers


def _failure(unit: WorkUnit, future: Future[Outcome], job: Job) -> str | None:
    """Which shard could not be made, and why; None where it was made.

    Raises:
        Refused, Failed: the reason would befall every shard.
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
    words = last_lines(job.log_folder, name)
    if words is None:
        return f"{name}: {reason}; their logs are in {job.log_folder} on the machines they ran on"
    path, lines = words
    return f"{name}: {reason}; {path} ends: {' | '.join(line.strip() for line in lines)}"
