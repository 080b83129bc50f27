"""Runs one work unit on one device in this process and commits its shard; the teacher is loaded once per process."""

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
from generate_pairs.text.encoders import caption_features, recorded_encoder
from generate_pairs.text.feature_store import FOLDER, EncoderSpec
from generate_pairs.trajectory import MapNoise, generate_tokens
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
"""Of every worker: the rounding of a sum depends on its number of threads, and the bytes must not."""


@dataclass(frozen=True)
class PairMaker:
    """A teacher with its flow map: pair indices to pairs."""

    teacher: Teacher
    flow_map: FlowMap
    settings: SamplingSettings

    def make(self, spec: PairSpec, indices: range) -> Pairs:
        """The pairs of consecutive indices: noise and label depend only on the index; the teacher gives the tokens."""
        index_B = np.arange(indices.start, indices.stop, dtype=np.int64)
        noise_BLC = gaussian_noise(spec.seed, indices.start, len(indices), (spec.num_tokens, spec.codebook_dim))
        label_B = np.asarray(label(index_B, spec.num_classes))
        texts = self.teacher.texts
        text_B = None if texts is None else np.array([texts.captions[label] for label in label_B], dtype=object)
        device = self.teacher.codebook_VC.device
        choose = MapNoise(self.flow_map, torch.from_numpy(noise_BLC).to(device).float())
        sampled_BL = generate_tokens(self.teacher, torch.from_numpy(label_B).to(device), self.settings, choose)
        tokens_BL = sampled_BL.cpu().numpy().astype(spec.token_dtype)
        return Pairs(index_B, noise_BLC, tokens_BL, label_B, text_B)

    def with_texts(self, texts: Texts) -> PairMaker:
        """The same maker with labels that are indices into these captions."""
        return replace(self, teacher=self.teacher.with_texts(texts))


@lru_cache(maxsize=1)
def dataset_texts(root: Location, fingerprint: str, encoder: EncoderSpec, device: str) -> Texts:
    """The captions of a data set, read once per process; `encoder` has its location on this machine.

    Raises:
        Refused, Failed: the list of captions is missing or damaged.
    """
    return caption_features(load_captions(root, read_spec(root)), encoder, root / FOLDER, device)


@lru_cache(maxsize=1)
def pair_maker(config: TeacherConfig, solver_steps: int, sha256: str, device: str) -> PairMaker:
    """Load the teacher once per process.

    Raises:
        Failed: this machine's teacher of that name has another sha256 than the data set's.
    """
    loaded = load_teacher(config.name, device, getattr(torch, config.dtype))
    if loaded.sha256 != sha256:
        raise Failed(
            f"teacher {config.name} on {socket.gethostname()} has sha256 {loaded.sha256[:12]}, "
            f"but this data set needs {sha256[:12]}: install the same teacher on every worker"
        )
    flow_map = FlowMap(loaded.teacher.codebook_VC.float(), solver_steps)
    return PairMaker(loaded.teacher, flow_map, SamplingSettings.of(config.model_dump()))


def generate_shard(
    root: Location, spec: PairSpec, config: TeacherConfig, unit: WorkUnit, device: str = "cpu"
) -> ManifestRow | Replacement:
    """Generate and commit one shard; repeated calls give the same bytes.

    A shard that another process has committed is not computed, unless the unit replaces it. Returns the row in the
    manifest, or the comparison of the new shard with the old one if the unit replaces it.

    Raises:
        Failed: this machine has another teacher, or the disk is full.
        Refused: the data set's folder is not writable, or contains other pairs.
    """
    if not unit.replaces and (row := committed_row(root, spec, shard_name(unit.shard_index))) is not None:
        return row
    with computing_threads(NUM_THREADS):
        began = time.monotonic()
        maker = pair_maker(config, spec.lineage["flow_map"]["solver_steps"], spec.lineage["teacher"]["sha256"], device)
        if spec.captions is not None:
            maker = maker.with_texts(dataset_texts(root, spec.fingerprint, recorded_encoder(spec.lineage), device))
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
    """Make this local worker process ignore stop signals; Dask calls this function.

    Ctrl-C, and Slurm at the end of a walltime, signal the whole process group. Only the driver should react: it lets
    the running shards finish. A worker without a driver exits.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def software_versions(device: str) -> str:
    """The software that makes pairs on a device, as the manifest records it."""
    versions = [f"tokenleap {version('tokenleap')}", f"torch {torch.__version__}", f"numpy {np.__version__}"]
    if device.startswith("cuda") and kernel_is_possible():
        import triton

        versions.append(f"triton {triton.__version__}")
    return ", ".join(versions)


def device_name(device: str) -> str:
    """The kind of device, as the manifest records it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu {platform.machine()}"
