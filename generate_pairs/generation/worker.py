"""One work unit on one device: a work unit in, one committed shard out.

Runs in whatever process it is called in; a second unit in the same process finds the teacher loaded.
"""

from __future__ import annotations

import platform
import signal
import socket
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import torch

from generate_pairs.compute.threads import computing_threads
from generate_pairs.config import TeacherConfig
from generate_pairs.flow_map.flow_map import FlowMap, kernel_is_possible
from generate_pairs.generation.work_units import WorkUnit
from generate_pairs.teachers.base import Teacher, Texts
from generate_pairs.teachers.checkpoints import load_teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.text.encoders import recorded_encoder, texts_of
from generate_pairs.text.feature_store import FOLDER, EncoderSpec
from generate_pairs.trajectory import MapNoise, walk
from shards.core.errors import Failed
from shards.dataset.captions import load_captions
from shards.dataset.manifest import read_spec
from shards.dataset.manifest_row import ManifestRow, shard_name
from shards.dataset.replace_shard import Replacement, replace_shard
from shards.dataset.writer import commit_shard, committed_row
from shards.format.noise import gaussian_noise
from shards.format.pairs import Pairs, label
from shards.format.spec import PairSpec
from shards.storage.paths import Location

NUM_THREADS = 1
"""Of every worker: sums split over another number of threads round differently, and bytes must not depend on it."""


@dataclass(frozen=True)
class PairMaker:
    """A teacher with its flow map, ready to turn pair indices into pairs."""

    teacher: Teacher
    flow_map: FlowMap
    settings: SamplingSettings

    def make(self, spec: PairSpec, indices: range) -> Pairs:
        """The pairs of consecutive indices: noise and label from the index alone, tokens through the teacher."""
        index_B = np.arange(indices.start, indices.stop, dtype=np.int64)
        noise_BLC = gaussian_noise(
            spec.seed, indices.start, len(indices), (spec.num_tokens, spec.codebook_dim)
        )
        label_B = np.asarray(label(index_B, spec.num_classes))
        texts = self.teacher.texts
        text_B = None if texts is None else np.array([texts.captions[one] for one in label_B], dtype=object)
        device = self.teacher.codebook_VC.device
        choose = MapNoise(self.flow_map, torch.from_numpy(noise_BLC).to(device).float())
        made_BL = walk(self.teacher, torch.from_numpy(label_B).to(device), self.settings, choose)
        tokens_BL = made_BL.cpu().numpy().astype(spec.token_dtype)
        return Pairs(index_B, noise_BLC, tokens_BL, label_B, text_B)

    def with_texts(self, texts: Texts) -> PairMaker:
        """The same maker, whose labels are the numbers of these captions."""
        return replace(self, teacher=self.teacher.with_texts(texts))


@lru_cache(maxsize=1)
def texts_of_shards(root: Location, fingerprint: str, encoder: EncoderSpec, device: str) -> Texts:
    """The captions of a data set, read once per process.

    Args:
        root: the data set's folder.
        fingerprint: of the data set.
        encoder: where it is on this machine.
        device: where features are computed.

    Raises:
        Refused, Failed: the list of captions is missing or damaged.
    """
    return texts_of(load_captions(root, read_spec(root)), encoder, root / FOLDER, device)


@lru_cache(maxsize=1)
def pair_maker(config: TeacherConfig, solver_steps: int, sha256: str, device: str) -> PairMaker:
    """Load the teacher once per process.

    Raises:
        Failed: this machine's teacher of that name has other weights than the data set was begun with.
    """
    loaded = load_teacher(config.name, device, getattr(torch, config.dtype))
    if loaded.sha256 != sha256:
        raise Failed(
            f"teacher {config.name} on {socket.gethostname()} has sha256 {loaded.sha256[:12]}, "
            f"but this data set is made with {sha256[:12]}: install the same teacher on every worker"
        )
    loaded.teacher.pack()
    flow_map = FlowMap(loaded.teacher.codebook_VC.float(), solver_steps)
    return PairMaker(loaded.teacher, flow_map, SamplingSettings.of(config.model_dump()))


def generate_shard(
    root: Location, spec: PairSpec, config: TeacherConfig, unit: WorkUnit, device: str = "cpu"
) -> ManifestRow | Replacement:
    """Make and commit one shard; running it twice gives the same bytes.

    A shard that is committed by now, by another driver perhaps, costs no computing, unless it is to be replaced.

    Returns:
        The row that stands in the manifest: this call's, or the one of whoever committed first. Of a unit that
        replaces a shard, how the new one compares with the old.

    Raises:
        Failed: the teacher here is another one, or the disk is full.
        Refused: the data set's folder cannot be written to, or holds other pairs.
    """
    if not unit.replaces and (there := committed_row(root, spec, shard_name(unit.shard_index))) is not None:
        return there
    with computing_threads(NUM_THREADS):
        began = time.monotonic()
        maker = pair_maker(
            config, spec.lineage["flow_map"]["solver_steps"], spec.lineage["teacher"]["sha256"], device
        )
        if spec.captions is not None:
            texts = texts_of_shards(root, spec.fingerprint, recorded_encoder(spec.lineage), device)
            maker = maker.with_texts(texts)
        batches = [maker.make(spec, indices) for indices in unit.batches()]
        facts = {
            "seconds": time.monotonic() - began,
            "host": socket.gethostname(),
            "device": device_name(device),
            "batch_size": unit.batch_size,
            "versions": software_versions(device),
        }
        pairs = Pairs.concatenate(batches)
        if unit.replaces:
            return replace_shard(root, spec, unit.shard_index, pairs, facts, unit.committed)
        return commit_shard(root, spec, unit.shard_index, pairs, facts)


def dask_setup(worker: object) -> None:
    """Called by Dask in every local worker process.

    What is sent to a whole process group, by Ctrl-C or by Slurm at the end of a walltime, is for the driver alone,
    which stops in order. A worker whose driver is gone ends by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def software_versions(device: str) -> str:
    """What pairs are made with on a device, in words, as the manifest records it."""
    words = [f"tokenleap {version('tokenleap')}", f"torch {torch.__version__}", f"numpy {np.__version__}"]
    if device.startswith("cuda") and kernel_is_possible():
        import triton

        words.append(f"triton {triton.__version__}")
    return ", ".join(words)


def device_name(device: str) -> str:
    """What kind of device it is, as the manifest records it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu {platform.machine()}"
