"""Make given shards on a pool of workers: what a mishap costs, and what ends the work at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from generate_pairs.cluster import pool
from generate_pairs.config import TeacherConfig
from generate_pairs.plan import WorkUnit
from generate_pairs.worker import make_shard
from shards.errors import Failed, Refused, Stopped
from shards.locations import Location
from shards.mending import Mended
from shards.record import PairSpec
from shards.reporting import Report, ShouldStop


@dataclass(frozen=True)
class GenerationSummary:
    """What a generation did; `mended` tells of the shards that replaced others, by their place."""

    num_shards_made: int
    num_pairs_made: int
    seconds: float
    mended: tuple[Mended, ...] = ()

    @property
    def pairs_per_second(self) -> float:
        return self.num_pairs_made / self.seconds if self.seconds else 0.0


def make_shards(
    teacher: TeacherConfig,
    root: Location,
    spec: PairSpec,
    units: Sequence[WorkUnit],
    *,
    num_pairs: int,
    workers: int,
    report: Report,
    should_stop: ShouldStop,
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
    size = spec.pairs_per_shard
    done_before = num_pairs - len(units) * size
    made, failures, mended = 0, list[BaseException](), list[Mended]()
    if units:
        report(done_before, num_pairs, "")
        calls = [(root, spec, teacher, unit) for unit in units]
        with pool(min(workers, len(units))) as running:
            for future in running.run(make_shard, calls):
                match future.exception():
                    case None:
                        made += 1
                        if isinstance(result := future.result(), Mended):
                            mended.append(result)
                    case Refused() as refusal:
                        raise refusal
                    case Failed() | OSError() as error:
                        raise Failed(
                            f"{error}. {made} of {len(units)} missing shards in {root} are made and kept"
                        ) from error
                    case mishap:
                        failures.append(mishap)
                report(done_before + made * size, num_pairs, f"{len(failures)} failed" if failures else "")
                if should_stop():
                    raise Stopped(f"{made} of {len(units)} missing shards are made and kept")
    if failures:
        raise Failed(
            f"{len(failures)} of {len(units)} shards in {root} could not be made, the rest are done. "
            f"First reason: {str(failures[0]) or repr(failures[0])}. The same command makes what is missing"
        ) from failures[0]
    mended.sort(key=lambda one: one.row.first_pair)
    return GenerationSummary(made, made * size, time.monotonic() - began, tuple(mended))
