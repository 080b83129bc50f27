"""Stage one's driver: plan, and make what is missing.

There is no state besides the data set itself: what a manifest row says is done is done, everything else is missing.
Running the same command again is the way to resume and to grow.
"""

from __future__ import annotations

from generate_pairs.config import GenerateConfig
from generate_pairs.generation.plan import plan_generation
from generate_pairs.generation.shard_jobs import GenerationSummary, generate_shards
from generate_pairs.generation.work_units import Task, work_unit
from generate_pairs.text.feature_store import FOLDER as FEATURES_FOLDER
from shards.core.callbacks import Notify, Report, ShouldStop
from shards.dataset.captions import commit_captions, load_captions
from shards.dataset.manifest import (
    Manifest,
    create_dataset,
    join,
)
from shards.dataset.manifest_row import ROW_FOLDER, SHARD_FOLDER, read_joined
from shards.storage.files import remove_stale_temporaries
from shards.storage.paths import Location

STALE_SECONDS = 3600.0
"""A temporary file this old belongs to a writer that was killed: a living one takes seconds."""


def generate(
    config: GenerateConfig,
    root: Location,
    *,
    workers: int,
    report: Report,
    should_stop: ShouldStop,
    task: Task | None = None,
    deadline: float | None = None,
    notify: Notify = lambda _: None,
) -> GenerationSummary:
    """Make every missing shard of a data set.

    Args:
        config: stage one's settings; `cluster` says where the shards are made. The bytes are the same.
        root: the data set's folder; made if it is not there.
        workers: local worker processes; 0 computes in this one. Without meaning for another cluster.
        report: called with (pairs done, by earlier runs too, pairs in all, note).
        should_stop: asked before every shard; finished shards stay, and those under way are finished.
        task: make this share of the shards only, as one of several processes that know nothing of each other.
        deadline: when, by `time.monotonic`, the last shard should have ended: none is begun that would end later.
        notify: hears once where the shards are made.

    Raises:
        Refused: the folder holds pairs made with other settings, or cannot be written to.
        Failed: some shards could not be made; finished ones stay.
        Stopped: `should_stop` said so.
        OutOfTime: the deadline is near.
    """
    plan = plan_generation(config, root)
    # Before the data set's own mark: from then on somebody may read it. Captions that are there may be others.
    if plan.captions is not None and not commit_captions(root, plan.captions.captions):
        load_captions(root, plan.spec)
    create_dataset(root, plan.spec)
    for folder in (root, root / SHARD_FOLDER, root / ROW_FOLDER, root / FEATURES_FOLDER):
        remove_stale_temporaries(folder, STALE_SECONDS)
    size = plan.spec.pairs_per_shard
    share = task or Task(0, 1)
    units = [work_unit(index, size, config.pairs.batch_size) for index in plan.missing if share.owns(index)]
    made = generate_shards(
        config.teacher,
        root,
        plan.spec,
        units,
        num_pairs=sum(map(share.owns, range(plan.num_shards))) * size,
        workers=workers,
        report=report,
        should_stop=should_stop,
        # Its worker is a process of its own, as one of a cluster is, and dies as alone.
        cluster=config.cluster.logging_into(root) if task else config.cluster,
        deadline=deadline,
        notify=notify,
    )
    join_when_complete(root, plan.num_shards)
    return made


def join_when_complete(root: Location, num_shards: int) -> None:
    """Writes the joined table, if the first `num_shards` shards are all there and not all in it."""
    manifest = Manifest.open(root)
    joined = read_joined(root).keys()
    if not manifest.missing(num_shards) and joined != {row.shard for row in manifest.rows}:
        join(root)
