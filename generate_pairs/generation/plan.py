"""Plans a generation: the data set's spec and its missing shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from generate_pairs.config import GenerateConfig
from generate_pairs.flow_map.exponential_adams import default_num_steps
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.text.caption_lists import CaptionList, read_captions
from generate_pairs.text.encoders import ENCODER_KEY, recorded_encoder, requested_encoder
from generate_pairs.text.feature_store import EncoderSpec
from shards.core.errors import Refused
from shards.core.units import format_bytes
from shards.dataset.captions import captions_sha256, load_captions
from shards.dataset.manifest import Manifest, committed_names, dataset_exists, read_spec, refuse_other_spec
from shards.format.spec import PairSpec
from shards.format.tar_layout import bytes_per_pair
from shards.storage.files import sha256_bytes
from shards.storage.paths import Location


@dataclass(frozen=True)
class GenerationPlan:
    """The data set to generate, with `num_shards` shards when complete, and the indices of its missing shards.

    `captions` are those of a text-conditional teacher, else None.
    """

    loaded: LoadedTeacher
    spec: PairSpec
    num_shards: int
    missing: tuple[int, ...]
    captions: CaptionList | None = None

    @property
    def num_pairs(self) -> int:
        """All pairs, including the held-out ones."""
        return self.num_shards * self.spec.pairs_per_shard

    @property
    def num_missing_pairs(self) -> int:
        return len(self.missing) * self.spec.pairs_per_shard

    @property
    def num_training_pairs(self) -> int:
        return self.num_pairs - self.spec.num_heldout

    def lines(self) -> list[str]:
        """The plan as text for the user. The size of the captions' features is an upper bound."""
        size = self.num_pairs * bytes_per_pair(self.spec)
        done = self.num_shards - len(self.missing)
        captions = []
        if self.captions is not None:
            encoder = recorded_encoder(self.spec.lineage)
            token_bytes = 2 * encoder.dim
            max_bytes = len(set(self.captions.captions)) * encoder.max_tokens * token_bytes
            captions = [
                *self.captions.lines(),
                f"text features: {token_bytes:,} bytes a token of each distinct caption, "
                f"at most {format_bytes(max_bytes)} in all",
            ]
        return [
            f"{self.num_training_pairs:,} training pairs and {self.spec.num_heldout:,} held out, "
            f"in {self.num_shards:,} shards of {self.spec.pairs_per_shard:,}",
            f"{bytes_per_pair(self.spec):,} bytes a pair, {format_bytes(size)} in all",
            *captions,
            f"{done:,} shards are done, {len(self.missing):,} to make",
        ]


def pair_spec(
    config: GenerateConfig,
    loaded: LoadedTeacher,
    captions: CaptionList | None = None,
    encoder: EncoderSpec | None = None,
) -> PairSpec:
    """The spec that the settings define: everything that determines a pair, and the division into shards.

    A text-conditional teacher needs captions and their encoder.
    """
    teacher = loaded.teacher
    settings = config.teacher.model_dump(exclude={"name"})
    codebook_VC = teacher.codebook_VC.float().cpu().numpy()
    solver_steps = config.pairs.solver_steps or default_num_steps(teacher.codebook_dim)
    lineage = {
        "teacher": {"name": loaded.name, "family": loaded.family, "sha256": loaded.sha256, **settings},
        "codebook_sha256": sha256_bytes(codebook_VC.tobytes()),
        "flow_map": {"scheme": "exponential Adams 3, relative stop", "solver_steps": solver_steps},
    }
    spec = spec_by_shape(config, teacher)
    if captions is None or encoder is None:
        return replace(spec, lineage=lineage)
    return replace(
        spec,
        lineage={**lineage, ENCODER_KEY: asdict(encoder)},
        num_classes=len(captions.captions),
        captions={"name": captions.name, "sha256": captions_sha256(captions.captions)},
    )


def requested_pairs(
    config: GenerateConfig, loaded: LoadedTeacher, root: Location | None
) -> tuple[PairSpec, CaptionList | None]:
    """The spec that the settings define, and the captions of a text-conditional teacher.

    If the folder has a data set, it provides the captions and the encoder that the settings do not name.

    Raises:
        Refused: captions are missing, or given for a class-conditional teacher; or as `read_captions` and
            `requested_encoder`.
    """
    if not loaded.teacher.is_text_conditional:
        for key in ("file", "indices", "encoder"):
            if (value := getattr(config.captions, key)) is not None:
                raise Refused(
                    f"captions.{key} is {value}, but {loaded.name} draws images for classes: remove this key, or "
                    "choose a text-conditional teacher"
                )
        return pair_spec(config, loaded), None
    stored = read_spec(root) if root is not None and dataset_exists(root) else None
    if root is None or stored is None or stored.captions is None or config.captions.file is not None:
        captions = read_captions(config.captions)
    elif config.captions.indices is None:
        captions = CaptionList(stored.captions["name"], tuple(load_captions(root, stored)))
    else:
        raise Refused("captions.indices: they select from captions.file, which is not set")
    recorded = recorded_encoder(stored.lineage) if stored is not None and stored.captions is not None else None
    encoder = requested_encoder(config.captions, loaded.teacher, recorded)
    return pair_spec(config, loaded, captions, encoder), captions


def refuse_other_pairs(config: GenerateConfig, loaded: LoadedTeacher, root: Location) -> None:
    """Check that a data set has the spec that the settings define.

    Raises:
        Refused: the specs differ; the message names the differences. Or as `requested_pairs`.
    """
    spec, _ = requested_pairs(config, loaded, root)
    refuse_other_spec(root, spec)


def spec_by_shape(config: GenerateConfig, teacher: Teacher) -> PairSpec:
    """A spec that is sufficient to compute sizes: the teacher needs no weights, and the lineage is empty."""
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
        # A placeholder: sizes depend only on whether there are captions.
        captions={"sha256": "0" * 64} if teacher.is_text_conditional else None,
    )


def plan_generation(config: GenerateConfig, root: Location) -> GenerationPlan:
    """Plan what `generate` would do; writes nothing.

    Raises:
        Refused: the folder contains pairs of other settings, the teacher is missing, or it does not support the
            sampling settings.
    """
    loaded = load_teacher(config.teacher.name)
    refuse_unknown_sampling(config, loaded)
    spec, captions = requested_pairs(config, loaded, root)
    num_shards = config.pairs.num_shards
    missing: Sequence[int] = range(num_shards)
    if dataset_exists(root):
        refuse_other_spec(root, spec)
        missing = Manifest.open(root).missing(num_shards)
    return GenerationPlan(loaded, spec, num_shards, tuple(missing), captions)


def refuse_unknown_sampling(config: GenerateConfig, loaded: LoadedTeacher) -> None:
    """Check that the teacher's family supports every sampling setting that is not off.

    Raises:
        Refused: a setting is not supported, such as a temperature for VAR.
    """
    flat_1V = torch.zeros(1, loaded.teacher.vocab_size, device=loaded.teacher.codebook_VC.device)
    try:
        loaded.teacher.filter(flat_1V, SamplingSettings.of(config.teacher.model_dump()))
    except ValueError as error:
        raise Refused(f"teacher.{error}") from error


def refuse_fewer_pairs(config: GenerateConfig, root: Location) -> None:
    """Check that a data set has at most the requested number of pairs: data sets only grow.

    `generate` does not check this: a run may resume with its own number after its pairs were extended.

    Raises:
        Refused: it has more pairs; the message names the way to train on fewer.
    """
    if not dataset_exists(root):
        return
    spec, pairs = read_spec(root), config.pairs
    # With another division into shards these are other pairs; the plan refuses them and names each key.
    same_division = (spec.pairs_per_shard, spec.num_heldout) == (pairs.pairs_per_shard, pairs.heldout)
    # Counted by file name: only the plan needs to read the rows.
    num_training = len(committed_names(root)) * spec.pairs_per_shard - spec.num_heldout
    if same_division and num_training > pairs.num_shards * spec.pairs_per_shard - spec.num_heldout:
        raise Refused(
            f"pairs.num_pairs is {pairs.num_pairs}, but {root} already holds {num_training} training pairs: request "
            "at least that many. To train on fewer pairs, keep the data set and use `tokenleap distill --size`"
        )
