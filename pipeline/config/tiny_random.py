"""`--tiny-random`: a preset of a published teacher as a trial of minutes, with that teacher made small and random.

Every stage runs as it would for real, on the same scales, tokens, timesteps and split; only sizes shrink.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from generate_pairs.config import TINY
from generate_pairs.teachers.base import takes_text
from generate_pairs.teachers.published import TEACHERS
from shards.core.errors import Refused

SIZES: Mapping[str, Mapping[str, Any]] = {
    "pairs": {
        "num_pairs": 64,
        "num_heldout": 32,
        "pairs_per_shard": 32,
        "batch_size": 32,
        # A coarse map will do where the teacher's own distribution means nothing.
        "solver_steps": 8,
    },
    "train": {
        "num_steps": 20,
        "batch_size": 16,
        "warmup_steps": 5,
        "checkpoint_interval": 10,
        "log_interval": 5,
        # Trials run where there is no GPU, too, and processors often only imitate bfloat16.
        "precision": "float32",
    },
    # Images of noise are not to be scored.
    "evaluation": {"protocol": "samples", "num_images": 16},
}
"""What a trial has instead of the preset's own; `--set` and flags come after it."""


def shrunk(settings: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """A preset's settings as a trial's.

    Args:
        settings: as the preset's TOML holds them, known to be valid.
        preset: its name, for the message.

    Raises:
        Refused: its teacher is none of the published ones.
    """
    name = settings["teacher"]["name"]
    if name not in TEACHERS:
        raise Refused(
            f"--tiny-random makes a published teacher small, and {name}, the teacher of preset {preset}, is none: "
            "give the command without it"
        )
    network = TEACHERS[name].transformer.config
    if takes_text(network):
        trial = {"encoder": f"{TINY}{network.caption_dim}", "encoder_dtype": "float32"}
        settings = {**settings, "captions": {**settings.get("captions", {}), **trial}}
    sizes = {section: {**settings.get(section, {}), **values} for section, values in SIZES.items()}
    return {**settings, **sizes, "teacher": {**settings["teacher"], "name": f"{TINY}{name}"}}
