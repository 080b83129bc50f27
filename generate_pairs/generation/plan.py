"""What a generation would do: the data set's spec and what is missing of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from generate_pairs.config import GenerateConfig
from generate_pairs.flow_map.closed_form import default_num_steps
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.text.caption_lists import CaptionList, read_captions
from generate_pairs.text.encoders import ENCODER_KEY, recorded_encoder, requested_encoder
from generate_pairs.text.feature_store import EncoderSpec
from shards.core.errors import Refused
from shards.dataset.captions import captions_sha256, load_captions
from shards.dataset.manifest import (
    Manifest,
    committed_names,
    dataset_exists,
    read_spec,
    refuse_other_spec,
)
from shards.format.spec import PairSpec
from shards.format.tar_layout import bytes_per_pair
from shards.storage.files import sha256_bytes
from shards.storage.paths import Location


@dataclass(frozen=True)
class GenerationPlan:
    """What a generation would do.

    Attributes:
        spec: of the data set.
        num_shards: it shall have.
        missing: shards that are not there.
        image_shape: of the images that tokens stand for.
        captions: of a teacher that is conditioned on text.
    """

    spec: PairSpec
    num_shards: int
    missing: tuple[int, ...]
    image_shape: tuple[int, int, int]
    captions: CaptionList | None = None

    @property
    def num_pairs(self) -> int:
        """All pairs, the held-out ones too."""
        return self.num_shards * self.spec.pairs_per_shard

    @property
    def num_missing_pairs(self) -> int:
        return len(self.missing) * self.spec.pairs_per_shard

    @property
    def num_training_pairs(self) -> int:
        return self.num_pairs - self.spec.num_heldout

    def lines(self) -> list[str]:
        """The plan as people read it."""
        size = self.num_pairs * bytes_per_pair(self.spec)
        done = self.num_shards - len(self.missing)
        return [
            f"{self.num_training_pairs:,} training pairs and {self.spec.num_heldout:,} held out, "
            f"in {self.num_shards:,} shards of {self.spec.pairs_per_shard:,}",
            f"{bytes_per_pair(self.spec):,} bytes a pair, {size / 1e6:,.1f} MB in all",
            *(self.captions.lines() if self.captions else []),
            *self._feature_lines(),
            f"{done:,} shards are done, {len(self.missing):,} to make",
        ]

    def _feature_lines(self) -> list[str]:
        """What the features of captions take beside the pairs, at most."""
        if self.captions is None:
            return []
        encoder = recorded_encoder(self.spec.lineage)
        token, distinct = 2 * encoder.dim, len(set(self.captions.captions))
        most = distinct * encoder.max_tokens * token
        return [
            f"text features: {token:,} bytes a token of each distinct caption, at most {most / 1e6:,.1f} MB in all"
        ]


def pair_spec(config: GenerateConfig, loaded: LoadedTeacher) -> PairSpec:
    """The data set that a configuration asks for: everything that determines a pair, and how pairs are cut."""
    teacher = loaded.teacher
    settings = config.teacher.model_dump(exclude={"name"})
    codebook_VC = teacher.codebook_VC.float().cpu().numpy()
    solver_steps = config.pairs.solver_steps or default_num_steps(teacher.codebook_dim)
    lineage = {
        "teacher": {"name": loaded.name, "family": loaded.family, "sha256": loaded.sha256, **settings},
        "codebook_sha256": sha256_bytes(codebook_VC.tobytes()),
        "flow_map": {"scheme": "exponential Adams 3, relative stop", "solver_steps": solver_steps},
    }
    return replace(spec_by_shape(config, teacher), lineage=lineage)


def text_pair_spec(
    config: GenerateConfig, loaded: LoadedTeacher, captions: CaptionList, encoder: EncoderSpec
) -> PairSpec:
    """As `pair_spec`, of a teacher that draws images for captions."""
    spec = pair_spec(config, loaded)
    return replace(
        spec,
        lineage={**spec.lineage, ENCODER_KEY: asdict(encoder)},
        num_classes=len(captions.captions),
        captions={"name": captions.name, "sha256": captions_sha256(captions.captions)},
    )


def requested_pairs(
    config: GenerateConfig, loaded: LoadedTeacher, root: Location | None
) -> tuple[PairSpec, CaptionList | None]:
    """The data set that a configuration asks for, and the captions of a text-conditional teacher.

    In a folder, captions and an encoder that the settings do not name are those of the data set that is there.

    Raises:
        Refused: there are no captions, or captions for a teacher that has no use for them; or as `pair_spec`.
    """
    if not loaded.teacher.is_text_conditional:
        for key in ("file", "indices", "encoder"):
            if (asked := getattr(config.captions, key)) is not None:
                raise Refused(
                    f"captions.{key} is {asked}, and {loaded.name} draws images for classes: leave it out, or take a "
                    "teacher that is conditioned on text"
                )
        return pair_spec(config, loaded), None
    there = read_spec(root) if root is not None and dataset_exists(root) else None
    if root is None or there is None or there.captions is None:
        captions = read_captions(config.captions)
        return text_pair_spec(
            config, loaded, captions, requested_encoder(config.captions, loaded.teacher)
        ), captions
    if config.captions.file is None:
        if config.captions.indices is not None:
            raise Refused("captions.indices: they choose from captions.file, which is not given")
        captions = CaptionList(there.captions["name"], tuple(load_captions(root, there)))
    else:
        captions = read_captions(config.captions)
    recorded = recorded_encoder(there.lineage)
    encoder = requested_encoder(config.captions, loaded.teacher, recorded)
    return text_pair_spec(config, loaded, captions, encoder), captions


def refuse_other_pairs(config: GenerateConfig, loaded: LoadedTeacher, root: Location) -> None:
    """Confirms that a data set is the one that a configuration asks for.

    Raises:
        Refused: it is another one; names what differs. Or as `requested_pairs`.
    """
    spec, _ = requested_pairs(config, loaded, root)
    refuse_other_spec(root, spec)


def spec_by_shape(config: GenerateConfig, teacher: Teacher) -> PairSpec:
    """The spec of a data set as far as its bytes go: of a teacher without weights, so without a lineage."""
    return PairSpec(
        lineage={},
        tokens_per_step=teacher.layout.tokens_per_step,
        vocab_size=teacher.vocab_size,
        codebook_dim=teacher.codebook_dim,
        num_classes=teacher.num_classes,
        num_heldout=config.pairs.heldout,
        pairs_per_shard=config.pairs.pairs_per_shard,
        seed=config.pairs.seed,
        noise=config.pairs.noise,
        # Only that there are some.
        captions={"sha256": "0" * 64} if teacher.is_text_conditional else None,
    )


def plan_generation(config: GenerateConfig, root: Location) -> GenerationPlan:
    """What `generate` would do now; writes nothing.

    Raises:
        Refused: the folder holds pairs made with other settings, the teacher cannot be found, or it cannot
            sample as it is told to.
    """
    loaded = load_teacher(config.teacher.name)
    refuse_unknown_sampling(config, loaded)
    spec, captions = requested_pairs(config, loaded, root)
    num_shards = config.pairs.num_shards
    missing: Sequence[int] = range(num_shards)
    if dataset_exists(root):
        refuse_other_spec(root, spec)
        missing = Manifest.open(root).missing(num_shards)
    image_shape = loaded.teacher.tokenizer.image_shape
    return GenerationPlan(spec, num_shards, tuple(missing), image_shape, captions)


def refuse_unknown_sampling(config: GenerateConfig, loaded: LoadedTeacher) -> None:
    """Confirms that the teacher's family knows every sampling setting that is not off.

    Raises:
        Refused: VAR is given a temperature.
    """
    flat_1V = torch.zeros(1, loaded.teacher.vocab_size, device=loaded.teacher.codebook_VC.device)
    try:
        loaded.teacher.filter(flat_1V, SamplingSettings.of(config.teacher.model_dump()))
    except ValueError as error:
        raise Refused(f"teacher.{error}") from error


def refuse_fewer_pairs(config: GenerateConfig, root: Location) -> None:
    """Confirms that a data set does not hold more shards than are asked for: it grows, and never shrinks.

    `generate` itself takes no offence: a run may be resumed with its own number after its pairs were extended.

    Raises:
        Refused: it holds more; tells the way to a smaller training.
    """
    if not dataset_exists(root):
        return
    spec, asked = read_spec(root), config.pairs
    # Pairs that are cut otherwise are other pairs: that is for the plan to say, key by key.
    same_cut = (spec.pairs_per_shard, spec.num_heldout) == (asked.pairs_per_shard, asked.heldout)
    # Counted, not read: the plan reads every row, and of many shards once is enough.
    held = len(committed_names(root)) * spec.pairs_per_shard - spec.num_heldout
    if same_cut and held > asked.num_shards * spec.pairs_per_shard - spec.num_heldout:
        raise Refused(
            f"pairs.num_pairs is {asked.num_pairs}, but {root} already holds {held} training pairs: ask for as "
            "many or more. To learn from fewer of them, leave them there and use `tokenleap distill --size`"
        )
