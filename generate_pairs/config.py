"""Stage one's settings, as people write them: `[teacher]`, `[captions]`, `[pairs]` and `[cluster]` of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from shards.core.settings import FREE, UPWARD, Settings
from shards.storage.paths import Location, expanded

TINY = "tiny-random/"
"""Begins the names of teachers and text encoders that are made small and random."""

ENCODERS = Path(__file__).parent / "text" / "weights"
"""The folder of the text encoders that ship."""

WALLTIME = r"^(\d+-)?\d+:[0-5]\d:[0-5]\d$"
"""How a length of time is written, as Slurm does: 3:50:00, or 1-12:00:00 with days."""


def walltime_seconds(text: str) -> int:
    """Seconds of a text that matches `WALLTIME`."""
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


class TeacherConfig(Settings):
    """Which teacher, and how it samples."""

    name: str = Field(description="an embedded teacher's name, an imported one's, or a .safetensors file")
    guidance_scale: float = Field(
        1.0, ge=0, description="classifier-free guidance, in the family's own convention"
    )
    top_k: int = Field(0, ge=0, description="keep the k likeliest tokens; 0 is off")
    top_p: float = Field(
        1.0, gt=0, le=1, description="keep the smallest set of tokens with this mass; 1 is off"
    )
    temperature: float = Field(
        1.0, gt=0, description="divides the logits; LlamaGen only, VAR's sampler has none"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="the teacher's arithmetic"
    )

    def with_absolute_path(self) -> TeacherConfig:
        """The same settings with a name that means the same in every folder, where it is a path."""
        if not self.name.endswith(".safetensors"):
            return self
        return self.model_copy(update={"name": str(Path(self.name).expanduser().absolute())})


class CaptionsConfig(Settings):
    """What a teacher that is conditioned on text draws images for."""

    # Files may lie elsewhere when a run goes on: it is their content that is held against the pairs'.
    file: str | None = Field(
        None,
        description="captions, as .txt (one a line), .jsonl or .parquet, here or at a URL; digits: those that ship",
        json_schema_extra=FREE,
    )
    column: str = Field(
        "caption",
        description="of a .jsonl or .parquet file, where the captions stand",
        json_schema_extra=FREE,
    )
    indices: str | None = Field(
        None,
        description="a file of whole numbers: the captions to take, in this order, counted from 0",
        json_schema_extra=FREE,
    )
    encoder: str | None = Field(
        None,
        description="the text encoder: hf://OWNER/REPOSITORY or the folder of a T5, or one that ships",
        json_schema_extra=FREE,
    )
    encoder_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="the text encoder's arithmetic; features are float16"
    )

    def with_absolute_paths(self) -> CaptionsConfig:
        """The same settings with an encoder's name that means the same in every folder, where it is a path."""
        if self.encoder is None or "://" in self.encoder or self._names_a_small_encoder():
            return self
        path = expanded("captions.encoder", self.encoder)
        return self.model_copy(update={"encoder": str(path.absolute())}) if path.exists() else self

    def _names_a_small_encoder(self) -> bool:
        """Whether the encoder ships, or is drawn: whatever lies under that name here is another one."""
        name = str(self.encoder)
        return name.startswith(TINY) or (ENCODERS / f"{name}.safetensors").is_file()


class PairsConfig(Settings):
    """How many pairs, from which noise, cut into which shards."""

    num_pairs: int = Field(
        20_000, gt=0, description="training pairs, rounded up to full shards", json_schema_extra=UPWARD
    )
    num_heldout: int | None = Field(
        None, ge=0, description="pairs kept out of every training; default: one shard"
    )
    pairs_per_shard: int = Field(1_000, gt=0, description="pairs in one tar: the unit of work and of retry")
    batch_size: int = Field(
        250, gt=0, description="sequences the teacher makes at once", json_schema_extra=FREE
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the noise")
    solver_steps: int | None = Field(None, ge=1, description="of the flow map; default by codebook dimension")
    noise: Literal["stored", "counter"] = Field(
        "stored", description="store float16 noise, or make it again when reading"
    )

    @property
    def heldout(self) -> int:
        """Held-out pairs, whole shards: what was asked rounded up."""
        asked = self.pairs_per_shard if self.num_heldout is None else self.num_heldout
        return -(-asked // self.pairs_per_shard) * self.pairs_per_shard

    @property
    def num_shards(self) -> int:
        """Shards that hold the held-out and the training pairs; the last one is always full."""
        return -(-(self.heldout + self.num_pairs) // self.pairs_per_shard)


class ClusterConfig(Settings):
    """Where the pairs are made. None of it changes a pair, so all of it may differ when a run goes on."""

    scheduler: str = Field(
        "local",
        pattern=r"^(local|slurm|(tcp|tls|ucx|ws)://.+:\d+)$",
        description="local: processes of this machine; slurm: jobs; tcp://HOST:PORT: a Dask scheduler that runs",
        json_schema_extra=FREE,
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="auto: cuda where there is a GPU, and in Slurm jobs that ask for one",
        json_schema_extra=FREE,
    )
    log_folder: str | None = Field(
        None,
        description="where workers write their logs; default: logs/ in the data set's folder",
        json_schema_extra=FREE,
    )
    jobs: int = Field(1, gt=0, description="slurm: jobs to keep, one worker each", json_schema_extra=FREE)
    queue: str | None = Field(None, description="slurm: the partition", json_schema_extra=FREE)
    account: str | None = Field(None, description="slurm: whom to charge", json_schema_extra=FREE)
    walltime: str = Field(
        "4:00:00", pattern=WALLTIME, description="slurm: of one job", json_schema_extra=FREE
    )
    cores: int = Field(
        1, gt=0, description="slurm: of one job; making pairs takes one", json_schema_extra=FREE
    )
    memory: str = Field(
        "16GB",
        pattern=r"^\d+(\.\d+)?\s?[kMGT]?i?B$",
        description="slurm: of one job",
        json_schema_extra=FREE,
    )
    gpus: int = Field(
        0, ge=0, le=1, description="slurm: of one job; a worker takes one", json_schema_extra=FREE
    )
    prologue: tuple[str, ...] = Field(
        (), description="slurm: lines of shell before the worker starts", json_schema_extra=FREE
    )
    directives: tuple[str, ...] = Field(
        (), description="slurm: more #SBATCH options, as in --constraint=a100", json_schema_extra=FREE
    )
    worker_arguments: tuple[str, ...] = Field(
        (), description="slurm: more options of `dask worker`", json_schema_extra=FREE
    )
    interface: str | None = Field(
        None,
        description="slurm: network interface of scheduler and workers, as in ib0",
        json_schema_extra=FREE,
    )
    host: str | None = Field(
        None, description="slurm: address at which workers find the scheduler", json_schema_extra=FREE
    )

    def logging_into(self, root: Location) -> ClusterConfig:
        """These settings with the folder of the workers' logs as a whole path.

        By default it lies inside the data set's folder or, where that is at a URL, in `logs` where one stands.
        """
        folder = self.log_folder or (root / "logs" if isinstance(root, Path) else "logs")
        return self.model_copy(update={"log_folder": str(Path(folder).absolute())})


class GenerateConfig(Settings):
    """Everything that stage one is told."""

    teacher: TeacherConfig
    captions: CaptionsConfig = CaptionsConfig()
    pairs: PairsConfig
    cluster: ClusterConfig = ClusterConfig()
