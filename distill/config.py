"""Stage two's settings, as people write them: `[student]`, `[train]` and `[evaluation]` of a preset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from shards.core.settings import FREE, UPWARD, Settings

FEWEST_SCORED = 100
"""Images below which a Frechet distance says nothing."""

DEFAULT_IMAGES = {"digits": 2_000, "samples": 64, "adm": 50_000, "dd": 50_000, "folder": 10_000}
"""Images of each method, by protocol, where the settings do not say."""

MOST_CURVE_IMAGES = 5_000
"""So many images a look of an ablation scores at most unless told otherwise, as figures 7 and 8 of arXiv 2412.17153."""

REFERENCE_FREE = ("digits", "samples")
"""Protocols that bring their own real images, or need none."""


def checked_weight(weight: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """A weight of the noise; one of a single number is that number.

    Raises:
        ValueError: there is none, or one that is below 0 or not finite.
    """
    weights = weight if isinstance(weight, tuple) else (weight,)
    if not weights or not all(0 <= each < math.inf for each in weights):
        got = ", ".join(f"{each:g}" for each in weights) or "none"
        raise ValueError(f"it is one number for each timestep or one for all, at least 0; got {got}")
    return weights if len(weights) > 1 else weights[0]


NoiseWeight = Annotated[float | tuple[float, ...], AfterValidator(checked_weight)]
"""Of a position's own noise in the choice of its token: one for all passes, or one for each of a student's timesteps."""


def misfit(weight: NoiseWeight, timesteps: Sequence[int]) -> str | None:
    """What is wrong with a weight of the noise for these timesteps, None where nothing is."""
    if not isinstance(weight, tuple) or len(weight) == len(timesteps):
        return None
    return f"{len(weight)} numbers for {len(timesteps)} timesteps: give one for each of them, or one for all"


class StudentConfig(Settings):
    """Which states of the trajectory the student learns to finish, and which head makes which tokens."""

    timesteps: tuple[int, ...] = Field(
        (0,), description="AR steps already data, ascending; 0 must be among them"
    )
    split: int = Field(
        0,
        ge=0,
        description="tokens of AR steps below it come from the token head, the rest from the continuous head, "
        "which needs train.embedding_weight",
    )
    noise_weight: NoiseWeight = Field(
        0.0,
        description="of a position's own noise when the token head chooses its token, one for all passes or one for each "
        "of timesteps; 0 takes the likeliest, as the official sampler does",
    )
    initialise: str = Field("teacher", pattern="^(teacher|random)$", description="where the weights start")

    @field_validator("timesteps")
    @classmethod
    def _ascending_from_zero(cls, timesteps: tuple[int, ...]) -> tuple[int, ...]:
        if not timesteps or timesteps[0] != 0 or list(timesteps) != sorted(set(timesteps)):
            raise ValueError(
                f"timesteps must ascend from 0 without repeats, as in 0,5; got {list(timesteps)}"
            )
        return timesteps


class TrainConfig(Settings):
    """The training loop."""

    num_steps: int = Field(1_000, gt=0, description="optimizer updates", json_schema_extra=UPWARD)
    batch_size: int = Field(64, gt=0, description="pairs in a global batch")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices of the network's layers, AdamW for the rest"
    )
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW, at the top of the schedule")
    muon_learning_rate: float = Field(0.02, gt=0, description="of Muon, at the top of the schedule")
    warmup_steps: int = Field(100, ge=0, description="linear rise from zero")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="after the warmup; cosine falls to zero"
    )
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = Field((0.9, 0.95), description="of AdamW, each in [0, 1)")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    ema_decay: float = Field(
        0.9999, ge=0, lt=1, description="the most that min(ema_decay, (i + 1) / (i + 10)) reaches"
    )
    timestep_weights: tuple[float, ...] | None = Field(
        None, description="how often each of the student's timesteps is drawn; all alike by default"
    )
    token_weight: float = Field(1.0, ge=0, description="of the cross-entropy of the token head")
    embedding_weight: float = Field(0.0, ge=0, description="of the squared distance between embeddings")
    image_weight: float = Field(0.0, ge=0, description="of the distance between decoded images")
    image_distance: Literal["squared", "lpips"] = Field(
        "squared", description="lpips: as VGG16 sees them; an extra, with weights that it fetches"
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="of the order of pairs, the timesteps and the initialisation"
    )
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        description="CPU threads, an equal share of a batch each; a different number gives different rounding",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU for each process where there is one", json_schema_extra=FREE
    )
    device_batch_size: int | Literal["auto"] = Field(
        "auto",
        description="pairs that a device computes at once, their gradients added up; auto: as many as fit",
        json_schema_extra=FREE,
    )
    precision: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="of the computing; bfloat16 keeps float32 weights, averages and optimizer"
    )
    checkpoint_activations: bool = Field(
        False, description="compute each layer again for its gradient, rather than keep what is in between"
    )
    compile: bool = Field(False, description="have torch.compile make kernels of the network")
    deterministic: bool = Field(
        False, description="on a GPU: only kernels that give the same bytes again, which are slower"
    )
    num_workers: int = Field(
        0,
        ge=0,
        le=256,
        description="processes that read pairs ahead, 0 for none; the batches are the same",
        json_schema_extra=FREE,
    )
    checkpoint_interval: int = Field(
        500,
        gt=0,
        description="steps between checkpoints, and between grids of samples",
        json_schema_extra=FREE,
    )
    kept_checkpoints: int = Field(2, ge=1, description="newest checkpoints that stay", json_schema_extra=FREE)
    keep_interval: int | None = Field(
        None, gt=0, description="checkpoints at multiples of it stay, too", json_schema_extra=FREE
    )
    log_interval: int = Field(50, gt=0, description="steps between lines of metrics", json_schema_extra=FREE)
    tensorboard: bool = Field(
        False, description="write the metrics for TensorBoard, too", json_schema_extra=FREE
    )

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
            raise ValueError(
                "a compiled network is run by one thread: set train.threads to 1, or compile to false"
            )
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
    """How images are judged; docs/evaluation.md says what each protocol is."""

    protocol: Literal["digits", "samples", "adm", "dd", "folder"] = Field(
        "digits",
        description="features and reference images; samples has neither: images, token match and times only",
    )
    num_images: int = Field(
        DEFAULT_IMAGES["digits"], ge=2, description="images of each method; to be scored at least 100"
    )
    curve_images: int = Field(
        DEFAULT_IMAGES["digits"], ge=2, description="images that a look of an ablation scores, likewise"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the evaluation noise, apart from the pairs' own")
    repeats: int = Field(
        1, ge=1, le=100, description="noise streams that scores are averaged over: seed, seed + 1, ..."
    )
    # Paths may change on the way: a run moves to another machine.
    reference: str | None = Field(
        None,
        description="file or folder of what images are held against, for adm, dd and folder",
        json_schema_extra=FREE,
    )
    features: str = Field(
        "inception",
        description="what the protocol folder looks through: inception, digits, or what a package registers as "
        "tokenleap.features",
    )
    inception_weights: str | None = Field(
        None,
        description="file of torch-fidelity's Inception weights; by default its own cached or downloaded copy",
        json_schema_extra=FREE,
    )
    clip: str | None = Field(
        None,
        description="of a teacher of captions: a CLIP, as a folder or hf://OWNER/REPOSITORY, that tells how well images "
        "fit them",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where images are made, judged and timed", json_schema_extra=FREE
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_of_the_protocol(cls, settings: Any) -> Any:
        """Numbers of images that are not given follow from the protocol, so that the resolved settings show them."""
        if not isinstance(settings, Mapping):
            return settings
        filled = dict(settings)
        usual = DEFAULT_IMAGES.get(str(filled.get("protocol", "digits")))
        if "num_images" not in filled and usual is not None:
            filled["num_images"] = usual
        if "curve_images" not in filled and isinstance(filled.get("num_images"), int):
            filled["curve_images"] = max(2, min(MOST_CURVE_IMAGES, filled["num_images"]))
        return filled

    @field_validator("num_images", "curve_images")
    @classmethod
    def _enough_for_scores(cls, count: int, info: ValidationInfo) -> int:
        protocol = info.data.get("protocol")
        derived = info.field_name == "curve_images" and "num_images" not in info.data
        if protocol not in (None, "samples") and count < FEWEST_SCORED and not derived:
            raise ValueError(
                f"{info.field_name} is {count}, and the scores of the protocol {protocol} need at least "
                f"{FEWEST_SCORED}"
            )
        return count

    @property
    def seeds(self) -> range:
        """The noise seeds, one a repeat."""
        return range(self.seed, self.seed + self.repeats)

    @property
    def asked(self) -> dict[str, Any]:
        """What a result must have been made with to be the one that is asked for; all of it stands in the result."""
        keys = ["protocol", "num_images", "seed", "repeats"]
        if self.protocol not in REFERENCE_FREE:
            keys.append("reference")
        if self.protocol == "folder":
            keys.append("features")
        if self.clip is not None:
            keys.append("clip")
        return {key: getattr(self, key) for key in keys}


class DistillConfig(Settings):
    """Everything that stage two is told."""

    student: StudentConfig
    train: TrainConfig
