"""Settings of stage two: the tables `[student]`, `[train]` and `[evaluation]` of a preset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from shards.core.settings import FREE, UPWARD, Settings

MIN_SCORED_IMAGES = 100
"""A Frechet distance of fewer images is meaningless."""

DEFAULT_IMAGES = {"digits": 2_000, "samples": 64, "adm": 50_000, "dd": 50_000, "folder": 10_000}
"""Default number of images of each method, by protocol."""

MAX_DEFAULT_CURVE_IMAGES = 5_000
"""Upper limit of the default of `curve_images`, as in figures 7 and 8 of arXiv 2412.17153."""

REFERENCE_FREE = ("digits", "samples")
"""Protocols that contain their reference images or need none."""


def validate_noise_weight(weight: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """Check a noise weight; a tuple of one number becomes that number.

    Raises:
        ValueError: The tuple is empty, or a number is negative or not finite.
    """
    weights = weight if isinstance(weight, tuple) else (weight,)
    if not weights or not all(0 <= each < math.inf for each in weights):
        got = ", ".join(f"{each:g}" for each in weights) or "none"
        raise ValueError(f"give one number for all timesteps or one for each, at least 0; got {got}")
    return weights if len(weights) > 1 else weights[0]


NoiseWeight = Annotated[float | tuple[float, ...], AfterValidator(validate_noise_weight)]
"""Weight of a position's own noise when its token is chosen: one for all passes, or one for each timestep."""


def noise_weight_error(weight: NoiseWeight, timesteps: Sequence[int]) -> str | None:
    """Describe why a noise weight does not fit these timesteps; None if it fits."""
    if not isinstance(weight, tuple) or len(weight) == len(timesteps):
        return None
    return f"{len(weight)} numbers for {len(timesteps)} timesteps: give one for each of them, or one for all"


class StudentConfig(Settings):
    """The trajectory states that the student learns to complete, and the head that predicts each token."""

    timesteps: tuple[int, ...] = Field((0,), description="AR steps that are already data, ascending from 0")
    split: int = Field(
        0,
        ge=0,
        description="AR steps below it use the token head, others the continuous head (train.embedding_weight)",
    )
    noise_weight: NoiseWeight = Field(
        0.0,
        description="weight of a position's own noise when the token head chooses a token: one number, or one for each "
        "timestep; 0 chooses the most likely token, as the official sampler does",
    )
    initialise: Literal["teacher", "random"] = Field("teacher", description="initial weights")

    @field_validator("timesteps")
    @classmethod
    def _ascending_from_zero(cls, timesteps: tuple[int, ...]) -> tuple[int, ...]:
        if not timesteps or timesteps[0] != 0 or list(timesteps) != sorted(set(timesteps)):
            raise ValueError(f"timesteps must ascend from 0 without repeats, as in 0,5; got {list(timesteps)}")
        return timesteps


class TrainConfig(Settings):
    """The training loop."""

    num_steps: int = Field(1_000, gt=0, description="optimizer updates", json_schema_extra=UPWARD)
    batch_size: int = Field(64, gt=0, description="pairs in a global batch")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="optimizer; muon uses Muon for matrices of layers and AdamW for other parameters"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    muon_learning_rate: float = Field(0.02, gt=0, description="peak learning rate of Muon")
    warmup_steps: int = Field(100, ge=0, description="steps of linear warmup from zero")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after the warmup; cosine decays to zero"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW and Muon")
    betas: tuple[float, float] = Field((0.9, 0.95), description="betas of AdamW, each at least 0 and below 1")
    max_grad_norm: float = Field(1.0, gt=0, description="norm to which gradients are clipped")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="upper limit of the decay (i + 1) / (i + 10)")
    timestep_weights: tuple[float, ...] | None = Field(
        None, description="relative frequencies of timesteps; equal unless set"
    )
    token_weight: float = Field(1.0, ge=0, description="weight of the token head's cross-entropy")
    embedding_weight: float = Field(0.0, ge=0, description="weight of the embedding distance")
    image_weight: float = Field(0.0, ge=0, description="weight of the distance of decoded images")
    image_distance: Literal["squared", "lpips"] = Field(
        "squared", description="distance of decoded images; lpips compares VGG16 features and needs an extra"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of pair order, timesteps and initialisation")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads, each with a share of the batch; affects rounding")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the training; auto: one GPU for each process, if any", json_schema_extra=FREE
    )
    device_batch_size: int | Literal["auto"] = Field(
        "auto", description="pairs at once on a device; auto: as many as fit", json_schema_extra=FREE
    )
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="dtype of computation; with bfloat16, weights and optimizer stay float32"
    )
    checkpoint_activations: bool = Field(False, description="recompute layers in the backward pass")
    compile: bool = Field(False, description="compile the network with torch.compile")
    deterministic: bool = Field(False, description="use only deterministic GPU kernels (slower)")
    num_workers: int = Field(
        0, ge=0, le=256, description="processes that prefetch pairs; 0: none", json_schema_extra=FREE
    )
    checkpoint_interval: int = Field(
        500, gt=0, description="steps between checkpoints and sample grids", json_schema_extra=FREE
    )
    kept_checkpoints: int = Field(2, ge=1, description="newest checkpoints to keep", json_schema_extra=FREE)
    keep_interval: int | None = Field(
        None, gt=0, description="also keep checkpoints at multiples of it", json_schema_extra=FREE
    )
    log_interval: int = Field(50, gt=0, description="steps between rows of metrics", json_schema_extra=FREE)
    tensorboard: bool = Field(False, description="also write TensorBoard metrics", json_schema_extra=FREE)

    @field_validator("device_batch_size")
    @classmethod
    def _at_least_one(cls, size: int | str) -> int | str:
        if isinstance(size, int) and size < 1:
            raise ValueError(f"device_batch_size must be at least 1, or auto; got {size}")
        return size

    @field_validator("compile")
    @classmethod
    def _compiled_by_one_thread(cls, compiled: bool, info: ValidationInfo) -> bool:
        if compiled and info.data.get("threads", 1) > 1:
            raise ValueError("compile needs one thread: set train.threads to 1, or compile to false")
        return compiled

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1, as in 0.9,0.95; got {list(betas)}")
        return betas

    @field_validator("timestep_weights")
    @classmethod
    def _positive(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"timestep_weights must all be above 0, as in 3,1; got {list(weights)}")
        return weights


class EvaluationConfig(Settings):
    """How images are scored; docs/how-to/evaluation.md describes the protocols."""

    protocol: Literal["digits", "samples", "adm", "dd", "folder"] = Field(
        "digits", description="features and reference images; samples: no scores"
    )
    num_images: int = Field(DEFAULT_IMAGES["digits"], ge=2, description="images of each method; scores need at least 100")
    curve_images: int = Field(DEFAULT_IMAGES["digits"], ge=2, description="images of each evaluation in an ablation")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the evaluation noise, independent of the pairs")
    repeats: int = Field(1, ge=1, le=100, description="noise seeds to average scores over: seed, seed + 1, ...")
    # Paths may change: a run can move to another machine.
    reference: str | None = Field(
        None, description="reference file or folder, for adm, dd and folder", json_schema_extra=FREE
    )
    features: str = Field(
        "inception",
        description="feature network of the protocol folder: inception, digits, or a tokenleap.features entry point",
    )
    inception_weights: str | None = Field(
        None,
        description="file of torch-fidelity's Inception weights; by default its cached or downloaded copy",
        json_schema_extra=FREE,
    )
    clip: str | None = Field(
        None, description="CLIP that scores images against captions: a folder or hf://OWNER/REPOSITORY"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="device that generates, scores and times images", json_schema_extra=FREE
    )

    @model_validator(mode="before")
    @classmethod
    def _default_image_counts(cls, settings: Any) -> Any:
        """Fill in missing image counts from the protocol, so that the resolved settings show them."""
        if not isinstance(settings, Mapping):
            return settings
        filled = dict(settings)
        default = DEFAULT_IMAGES.get(str(filled.get("protocol", "digits")))
        if "num_images" not in filled and default is not None:
            filled["num_images"] = default
        if "curve_images" not in filled and isinstance(filled.get("num_images"), int):
            filled["curve_images"] = max(2, min(MAX_DEFAULT_CURVE_IMAGES, filled["num_images"]))
        return filled

    @field_validator("num_images", "curve_images")
    @classmethod
    def _enough_for_scores(cls, count: int, info: ValidationInfo) -> int:
        protocol = info.data.get("protocol")
        derived = info.field_name == "curve_images" and "num_images" not in info.data
        if protocol not in (None, "samples") and count < MIN_SCORED_IMAGES and not derived:
            raise ValueError(
                f"{info.field_name} is {count}, and the scores of the protocol {protocol} need at least "
                f"{MIN_SCORED_IMAGES}"
            )
        return count

    @property
    def seeds(self) -> range:
        """The noise seed of each repeat."""
        return range(self.seed, self.seed + self.repeats)

    @property
    def result_settings(self) -> dict[str, Any]:
        """Settings that a result depends on and records: a result with other values is out of date."""
        keys = ["protocol", "num_images", "seed", "repeats"]
        if self.protocol not in REFERENCE_FREE:
            keys.append("reference")
        if self.protocol == "folder":
            keys.append("features")
        if self.clip is not None:
            keys.append("clip")
        return {key: getattr(self, key) for key in keys}


class DistillConfig(Settings):
    """All settings that a training needs."""

    student: StudentConfig
    train: TrainConfig
