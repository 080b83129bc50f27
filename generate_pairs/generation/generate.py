"""Stage one: plan a data set and generate its missing shards.

The data set itself is the only state: a shard is done if the manifest has its row. Running the same command again
resumes or extends the data set.
"""

from __future__ import annotations

from generate_pairs.config import GenerateConfig
from generate_pairs.generation.plan import GenerationPlan, plan_generation
from generate_pairs.generation.shard_jobs import GenerationSummary, generate_shards
from generate_pairs.generation.work_units import Task, WorkUnit
from generate_pairs.text.feature_store import FOLDER as FEATURES_FOLDER
from shards.core.callbacks import Notify, Report, ShouldStop
from shards.dataset.captions import commit_captions, load_captions
from shards.dataset.manifest import Manifest, create_dataset, join
from shards.dataset.manifest_row import ROW_FOLDER, SHARD_FOLDER, read_joined
from shards.storage.files import remove_stale_temporaries
from shards.storage.paths import Location

STALE_SECONDS = 3600.0
"""A temporary file this old belongs to a killed writer: a running writer needs seconds."""


def generate(
    config: GenerateConfig,
    root: Location,
    *,
    workers: int,
    report: Report,
    should_stop: ShouldStop,
    plan: GenerationPlan | None = None,
    task: Task | None = None,
    deadline: float | None = None,
    notify: Notify = lambda _: None,
) -> GenerationSummary:
    """Generate every missing shard of a data set.

    Args:
        config: `cluster` sets where the shards are generated. The bytes are the same everywhere.
        workers: local worker processes; 0 computes in this process. Unused with another cluster.
        report: called with (pairs done, including earlier runs; pairs in total; note).
        should_stop: called before every shard; running shards finish, and finished shards are kept.
        plan: the result of `plan_generation`, if the caller has it.
        task: generate only this share of the shards, as one of several independent processes.
        deadline: `time.monotonic` time at which the last shard should have ended; a shard that would end later is
            not started.
        notify: called once with the place where the shards are generated.

    Raises:
        Refused: the folder contains pairs of other settings, or is not writable.
        Failed: some shards could not be generated; finished shards are kept.
        Stopped: `should_stop` returned true.
        OutOfTime: the next shard might end after the deadline.
    """
    plan = plan or plan_generation(config, root)
    # Before create_dataset: from then on other processes may read the data set. Existing captions must equal the plan's.
    if plan.captions is not None and not commit_captions(root, plan.captions.captions):
        load_captions(root, plan.spec)
    create_dataset(root, plan.spec)
    for folder in (root, root / SHARD_FOLDER, root / ROW_FOLDER, root / FEATURES_FOLDER):
        remove_stale_temporaries(folder, STALE_SECONDS)
    size = plan.spec.pairs_per_shard
    share = task or Task(0, 1)
    units = [WorkUnit(index, size, config.pairs.batch_size) for index in plan.missing if share.owns(index)]
    summary = generate_shards(
        config.teacher,
        root,
        plan.spec,
        units,
        num_pairs=sum(map(share.owns, range(plan.num_shards))) * size,
        workers=workers,
        report=report,
        should_stop=should_stop,
        # A task is a worker process of its own, so it writes a log as the workers of a cluster do.
        cluster=config.cluster.with_log_folder(root) if task else config.cluster,
        deadline=deadline,
        notify=notify,
    )
    join_when_complete(root, plan.num_shards)
    return summary


def join_when_complete(root: Location, num_shards: int) -> None:
    """Write the joined table if the first `num_shards` shards exist and the table lacks some of them."""
    manifest = Manifest.open(root)
    joined = read_joined(root).keys()
    if not manifest.missing(num_shards) and joined != {row.shard for row in manifest.rows}:
        join(root)
