"""`--tiny-random`: shrink a published teacher's preset to a trial of minutes with a small teacher of random weights.

Every stage runs on the preset's own scales, tokens, timesteps and split; only sizes shrink.
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
        # A coarse map is enough, because the random teacher's distribution has no meaning.
        "solver_steps": 8,
    },
    "train": {
        "num_steps": 20,
        "batch_size": 16,
        "warmup_steps": 5,
        "checkpoint_interval": 10,
        "log_interval": 5,
        # Trials also run on CPUs, many of which only emulate bfloat16.
        "precision": "float32",
    },
    # Scores of images from random weights have no meaning.
    "evaluation": {"protocol": "samples", "num_images": 16},
}
"""Settings that replace the preset's own in a trial; `--set` and other options override them."""


def shrunk(settings: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Shrink a preset's valid settings to those of a trial; `Refused` if its teacher is not a published one."""
    name = settings["teacher"]["name"]
    if name not in TEACHERS:
        raise Refused(
            f"--tiny-random needs a published teacher, and {name}, the teacher of preset {preset}, is not one: "
            "leave the option out"
        )
    network = TEACHERS[name].transformer.config
    if takes_text(network):
        trial = {"encoder": f"{TINY}{network.caption_dim}", "encoder_dtype": "float32"}
        settings = {**settings, "captions": {**settings.get("captions", {}), **trial}}
    sizes = {section: {**settings.get(section, {}), **values} for section, values in SIZES.items()}
    return {**settings, **sizes, "teacher": {**settings["teacher"], "name": f"{TINY}{name}"}}
