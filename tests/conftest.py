"""A small random teacher of each family, and pairs made with it: real architectures, no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from generate_pairs.config import GenerateConfig
from generate_pairs.driver import generate
from generate_pairs.teachers.checkpoints import save_teacher
from generate_pairs.teachers.families import build_teacher

TOKENIZERS = {
    "llamagen": {
        "vocab_size": 24,
        "codebook_dim": 3,
        "l2_normalised": False,
        "z_channels": 32,
        "ch": 32,
        "ch_mult": (1, 1),
        "num_res_blocks": 1,
        "image_channels": 1,
        "image_size": 8,
    },
    "var": {
        "vocab_size": 24,
        "codebook_dim": 3,
        "ch": 32,
        "ch_mult": (1, 1),
        "num_res_blocks": 1,
        "scales": (1, 2, 4),
        "image_channels": 1,
        "image_size": 8,
    },
}
TRANSFORMERS = {
    "llamagen": {
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "vocab_size": 24,
        "num_tokens": 16,
        "num_classes": 10,
        "dropout": 0.1,
        "ffn_multiple_of": 32,
    },
    "var": {
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "vocab_size": 24,
        "codebook_dim": 3,
        "scales": (1, 2, 4),
        "num_classes": 10,
        "dropout": 0.1,
    },
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["llamagen", "var"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def write_teacher(family: str, path: Path, seed: int = 0) -> Path:
    """A random teacher whose codebook rows are well apart and whose logits are not flat."""
    torch.manual_seed(seed)
    teacher = build_teacher(family, TRANSFORMERS[family], TOKENIZERS[family])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        teacher.tokenizer.quantize.embedding.weight.normal_(generator=generator)
        for parameter in teacher.transformer.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.2, generator=generator)
    save_teacher(teacher, family, path, {"data": "none"}, torch.float32)
    return path


@pytest.fixture(scope="session")
def teacher_path(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(family, tmp_path_factory.mktemp("teacher") / f"{family}.safetensors")


def asked_of(teacher: Path, *, guidance_scale: float = 1.5, **pairs: object) -> GenerateConfig:
    settings = {
        "num_pairs": 96,
        "pairs_per_shard": 32,
        "batch_size": 16,
        "seed": 3,
        "solver_steps": 16,
    } | pairs
    return GenerateConfig.model_validate(
        {"teacher": {"name": str(teacher), "guidance_scale": guidance_scale}, "pairs": settings}
    )


@pytest.fixture(scope="session")
def generate_config() -> Callable[..., GenerateConfig]:
    """Makes settings for a teacher's file: 32 held-out and 96 training pairs in shards of 32, unless told otherwise."""
    return asked_of


@pytest.fixture(scope="session")
def pairs_root(
    teacher_path: Path,
    generate_config: Callable[..., GenerateConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    root = tmp_path_factory.mktemp("made") / "pairs"
    generate(
        generate_config(teacher_path), root, workers=0, report=lambda *_: None, should_stop=lambda: False
    )
    return root
