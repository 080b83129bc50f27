"""A probe: how fast pairs are made here, measured on a few batches, and kept for plans to come.

Probes lie in `${TOKENLEAP_HOME:-~/.cache/tokenleap}/probes`, one JSON file for each data set's fingerprint, device and
batch size.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from generate_pairs.compute.threads import computing_threads
from generate_pairs.config import GenerateConfig
from generate_pairs.generation.work_units import work_unit
from generate_pairs.generation.worker import NUM_THREADS, device_name, pair_maker, software_versions
from generate_pairs.teachers.checkpoints import imported_folder
from generate_pairs.text.encoders import recorded_encoder, texts_of
from generate_pairs.text.feature_store import default_folder
from shards.core.callbacks import Report
from shards.core.errors import Refused
from shards.format.spec import PairSpec
from shards.storage.files import commit_bytes, list_names, read_bytes

NUM_BATCHES = 3
MOST_SECONDS = 60.0
"""A probe measures so many batches, and begins none after so many seconds; the one before them warms up."""


@dataclass(frozen=True)
class Probe:
    """What was measured, of one worker.

    Attributes:
        fingerprint: of the data set.
        device: kind of device, as the manifest records it.
        batch_size: pairs made at a time.
        num_batches: that were timed.
        num_pairs: in these batches.
        seconds: that they took, teacher loaded and one batch made before.
        versions: software it was measured with, in words.
    """

    fingerprint: str
    device: str
    batch_size: int
    num_batches: int
    num_pairs: int
    seconds: float
    versions: str

    @property
    def pairs_per_second(self) -> float:
        return self.num_pairs / self.seconds


def measure(
    config: GenerateConfig,
    spec: PairSpec,
    report: Report,
    device: str = "cpu",
    captions: Sequence[str] | None = None,
) -> Probe:
    """Makes a few batches as a worker would, and keeps none of them. That captions are encoded is not counted.

    Args:
        config: stage one's settings.
        spec: of the data set that they ask for.
        report: called with (batches made, batches in all, note).
        device: where to compute.
        captions: of a text-conditional teacher.

    Raises:
        Failed: the teacher was exchanged meanwhile.
    """
    batches = itertools.islice(_batches(spec, config.pairs.batch_size), 1 + NUM_BATCHES)
    with computing_threads(NUM_THREADS):
        maker = pair_maker(
            config.teacher,
            spec.lineage["flow_map"]["solver_steps"],
            spec.lineage["teacher"]["sha256"],
            device,
        )
        if captions is not None:
            texts = texts_of(captions, recorded_encoder(spec.lineage), default_folder(), device)
            texts.prepare(range(min(len(captions), (1 + NUM_BATCHES) * config.pairs.batch_size)))
            maker = maker.with_texts(texts)
        maker.make(spec, next(batches))
        report(1, 1 + NUM_BATCHES, "warm")
        began = time.monotonic()
        num_pairs = num_batches = 0
        for indices in batches:
            num_pairs += len(maker.make(spec, indices))
            num_batches += 1
            seconds = time.monotonic() - began
            report(1 + num_batches, 1 + NUM_BATCHES, "")
            if seconds > MOST_SECONDS:
                break
    return Probe(
        fingerprint=spec.fingerprint,
        device=device_name(device),
        batch_size=config.pairs.batch_size,
        num_batches=num_batches,
        num_pairs=num_pairs,
        seconds=seconds,
        versions=software_versions(device),
    )


def store(probe: Probe) -> Path:
    """Keeps a probe, in place of an earlier one of the same kind; where it lies now."""
    kind = re.sub(r"[^a-z0-9]+", "-", probe.device.lower())
    path = _folder() / f"{probe.fingerprint}-{kind}-{probe.batch_size}.json"
    commit_bytes(path, (json.dumps(asdict(probe), indent=2) + "\n").encode())
    return path


def stored(fingerprint: str) -> list[Probe]:
    """The probes of a data set, the fastest first.

    Raises:
        Refused: a file there is not a probe.
    """
    names = [name for name in list_names(_folder(), ".json") if name.startswith(f"{fingerprint}-")]
    return sorted((_read(_folder() / name) for name in names), key=lambda probe: -probe.pairs_per_second)


def _read(path: Path) -> Probe:
    try:
        return Probe(**json.loads(read_bytes(path)))
    except (TypeError, ValueError) as error:
        raise Refused(f"{path} is not a probe that tokenleap wrote: delete it ({error})") from error


def _folder() -> Path:
    return imported_folder().parent / "probes"


def _batches(spec: PairSpec, batch_size: int) -> Iterator[range]:
    """The batches of the data set in order, cut as a worker cuts them."""
    for index in itertools.count():
        yield from work_unit(index, spec.pairs_per_shard, batch_size).batches()
