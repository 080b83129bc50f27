"""Stage one's settings, as people write them: `[teacher]` and `[pairs]` of a preset."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shards.settings import FREE, UPWARD, Settings


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


class GenerateConfig(Settings):
    """Everything that stage one is told."""

    teacher: TeacherConfig
    pairs: PairsConfig
