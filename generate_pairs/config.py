"""The settings of stage one: `[teacher]`, `[captions]`, `[pairs]` and `[cluster]` of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from shards.core.settings import FREE, UPWARD, Settings
from shards.storage.paths import Location, expand_home

TINY = "tiny-random/"
"""Prefix of the names of small random teachers and text encoders."""

ENCODERS = Path(__file__).parent / "text" / "weights"
"""The folder of the embedded text encoders."""

WALLTIME = r"^(\d+-)?\d+:[0-5]\d:[0-5]\d$"
"""A duration in Slurm's form: 3:50:00, or 1-12:00:00 with days."""


def _free(default: Any, description: str, **limits: Any) -> Any:
    """A field that a resumed run may change."""
    return Field(default, description=description, json_schema_extra=FREE, **limits)


def walltime_seconds(text: str) -> int:
    """The seconds of a duration that matches `WALLTIME`."""
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


class TeacherConfig(Settings):
    """The teacher and its sampling settings."""

    name: str = Field(description="an embedded teacher's name, an imported one's, or a .safetensors file")
    guidance_scale: float = Field(1.0, ge=0, description="classifier-free guidance, in the family's own convention")
    top_k: int = Field(0, ge=0, description="keep the k most probable tokens; 0 is off")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the smallest set of tokens with this mass; 1 is off")
    temperature: float = Field(1.0, gt=0, description="divides the logits; only for LlamaGen, VAR's sampler has none")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype of the teacher's arithmetic")

    def with_absolute_path(self) -> TeacherConfig:
        """The same settings; if the name is a path, it is absolute."""
        if not self.name.endswith(".safetensors"):
            return self
        return self.model_copy(update={"name": str(Path(self.name).expanduser().absolute())})


class CaptionsConfig(Settings):
    """The captions of a text-conditional teacher."""

    # Resuming compares the content of the captions with that of the pairs, so the files may have moved.
    file: str | None = _free(
        None, "captions in .txt (one per line), .jsonl or .parquet, a path or a URL; digits: the embedded ones"
    )
    column: str = _free("caption", "column of the captions in a .jsonl or .parquet file")
    indices: str | None = _free(None, "a file of integers: the captions to use, in this order, counted from 0")
    encoder: str | None = _free(
        None, "the text encoder: a T5 as hf://OWNER/REPOSITORY or as a folder, or the name of an embedded one"
    )
    encoder_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the text encoder's arithmetic; features are float16"
    )

    def with_absolute_paths(self) -> CaptionsConfig:
        """The same settings; if the encoder is a path, it is absolute."""
        name = self.encoder
        # With the name of a random or embedded encoder, a file or folder of that name is not meant.
        if name is None or "://" in name or name.startswith(TINY) or (ENCODERS / f"{name}.safetensors").is_file():
            return self
        path = expand_home("captions.encoder", name)
        return self.model_copy(update={"encoder": str(path.absolute())}) if path.exists() else self


class PairsConfig(Settings):
    """The number of pairs, their noise, and their shards."""

    num_pairs: int = Field(
        20_000, gt=0, description="training pairs, rounded up to full shards", json_schema_extra=UPWARD
    )
    num_heldout: int | None = Field(None, ge=0, description="pairs that no training uses; one shard unless set")
    pairs_per_shard: int = Field(1_000, gt=0, description="pairs in one tar file, the unit of work and of retry")
    batch_size: int = _free(250, "sequences in one batch of the teacher", gt=0)
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the noise")
    solver_steps: int | None = Field(None, ge=1, description="steps of the flow map; unless set, by codebook dimension")
    noise: Literal["stored", "counter"] = Field("stored", description="store float16 noise, or generate it when reading")

    @property
    def heldout(self) -> int:
        """The number of held-out pairs: the requested number rounded up to full shards."""
        requested = self.pairs_per_shard if self.num_heldout is None else self.num_heldout
        return -(-requested // self.pairs_per_shard) * self.pairs_per_shard

    @property
    def num_shards(self) -> int:
        """The number of shards of held-out and training pairs, all full."""
        return -(-(self.heldout + self.num_pairs) // self.pairs_per_shard)


class ClusterConfig(Settings):
    """Where the pairs are generated. No setting changes a pair, so all may change when a run resumes."""

    scheduler: str = _free(
        "local",
        "local: processes on this machine; slurm: jobs; tcp://HOST:PORT: a running Dask scheduler",
        pattern=r"^(local|slurm|(tcp|tls|ucx|ws)://.+:\d+)$",
    )
    device: Literal["auto", "cpu", "cuda"] = _free(
        "auto", "device of the teacher; auto: cuda if there is a GPU, or if the Slurm jobs request one"
    )
    log_folder: str | None = _free(None, "folder of the workers' logs; unless set, logs/ in the data set's folder")
    jobs: int = _free(1, "slurm: number of jobs, one worker each", gt=0)
    queue: str | None = _free(None, "slurm: the partition")
    account: str | None = _free(None, "slurm: the account to charge")
    walltime: str = _free("4:00:00", "slurm: time limit of one job", pattern=WALLTIME)
    cores: int = _free(1, "slurm: cores of one job; generating pairs uses one", gt=0)
    memory: str = _free("16GB", "slurm: memory of one job", pattern=r"^\d+(\.\d+)?\s?[kMGT]?i?B$")
    gpus: int = _free(0, "slurm: GPUs of one job; a worker uses one", ge=0, le=1)
    prologue: tuple[str, ...] = _free((), "slurm: shell lines to run before the worker starts")
    directives: tuple[str, ...] = _free((), "slurm: more #SBATCH options, such as --constraint=a100")
    worker_arguments: tuple[str, ...] = _free((), "slurm: more options of `dask worker`")
    interface: str | None = _free(None, "slurm: network interface of scheduler and workers, such as ib0")
    host: str | None = _free(None, "slurm: address of the scheduler for the workers")

    def with_log_folder(self, root: Location) -> ClusterConfig:
        """These settings with an absolute path of the workers' log folder.

        The default is inside the data set's folder or, if that is at a URL, `logs` in the working directory.
        """
        folder = self.log_folder or (root / "logs" if isinstance(root, Path) else "logs")
        return self.model_copy(update={"log_folder": str(Path(folder).absolute())})


class GenerateConfig(Settings):
    """All settings of stage one."""

    teacher: TeacherConfig
    captions: CaptionsConfig = CaptionsConfig()
    pairs: PairsConfig
    cluster: ClusterConfig = ClusterConfig()
