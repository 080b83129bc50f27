"""Probes: measure the throughput of a few batches on this machine, and store it for later plans.

A probe is one JSON file in `${TOKENLEAP_HOME:-~/.cache/tokenleap}/probes` for each fingerprint, device and batch size.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

from generate_pairs.compute.threads import computing_threads
from generate_pairs.config import GenerateConfig
from generate_pairs.generation.work_units import WorkUnit
from generate_pairs.generation.worker import NUM_THREADS, device_name, pair_maker, software_versions
from generate_pairs.text.encoders import caption_features, recorded_encoder
from generate_pairs.text.feature_store import default_folder
from shards.core.callbacks import Report
from shards.core.errors import Refused
from shards.core.host import home_folder
from shards.format.spec import PairSpec
from shards.storage.files import commit_bytes, list_names, read_bytes

NUM_BATCHES = 3
MAX_SECONDS = 60.0
"""A probe measures this many batches after one warm-up batch, and starts none after this many seconds."""


@dataclass(frozen=True)
class Probe:
    """The throughput of one worker: the pairs and the seconds of the timed batches, without loading and warm-up.

    `device` and `versions` are as the manifest records them.
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


def measure_throughput(
    config: GenerateConfig,
    spec: PairSpec,
    report: Report,
    device: str = "cpu",
    captions: Sequence[str] | None = None,
) -> Probe:
    """Time a few batches, computed as a worker does, and discard them. Encoding the captions is not timed.

    Raises:
        Failed: the teacher's file has changed since `spec` was made.
    """
    batch_size, total = config.pairs.batch_size, 1 + NUM_BATCHES
    # In order, with a worker's boundaries; a shard has at least one batch.
    units = (WorkUnit(index, spec.pairs_per_shard, batch_size) for index in range(total))
    batches = islice(chain.from_iterable(unit.batches() for unit in units), total)
    with computing_threads(NUM_THREADS):
        maker = pair_maker(
            config.teacher, spec.lineage["flow_map"]["solver_steps"], spec.lineage["teacher"]["sha256"], device
        )
        if captions is not None:
            texts = caption_features(captions, recorded_encoder(spec.lineage), default_folder(), device)
            texts.prepare(range(min(len(captions), total * batch_size)))
            maker = maker.with_texts(texts)
        maker.make(spec, next(batches))
        report(1, total, "warm")
        began, num_pairs = time.monotonic(), 0
        for num_batches, indices in enumerate(batches, start=1):
            num_pairs += len(maker.make(spec, indices))
            seconds = time.monotonic() - began
            report(1 + num_batches, total, "")
            if seconds > MAX_SECONDS:
                break
    versions = software_versions(device)
    return Probe(spec.fingerprint, device_name(device), batch_size, num_batches, num_pairs, seconds, versions)


def save_probe(probe: Probe) -> Path:
    """Write a probe, replacing an earlier one of the same kind; returns its path."""
    kind = re.sub(r"[^a-z0-9]+", "-", probe.device.lower())
    path = _folder() / f"{probe.fingerprint}-{kind}-{probe.batch_size}.json"
    commit_bytes(path, (json.dumps(asdict(probe), indent=2) + "\n").encode())
    return path


def load_probes(fingerprint: str) -> list[Probe]:
    """The probes of a data set, the fastest first.

    Raises:
        Refused: a file in the folder is not a probe.
    """
    probes = []
    names = [name for name in list_names(_folder(), ".json") if name.startswith(f"{fingerprint}-")]
    for path in map(_folder().joinpath, names):
        try:
            probes.append(Probe(**json.loads(read_bytes(path))))
        except (TypeError, ValueError) as error:
            raise Refused(f"{path} is not a probe that tokenleap wrote: delete it ({error})") from error
    return sorted(probes, key=lambda probe: -probe.pairs_per_second)


def _folder() -> Path:
    return home_folder() / "probes"
