"""The table of published teachers: their shapes, their files, and where the weights are in a file.

Sources: the repositories FoundationVision/VAR and FoundationVision/LlamaGen and their pages on the Hugging Face Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generate_pairs.teachers.llamagen.tokenizer import IGNORED_BUFFERS as VQ_BUFFERS
from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizerConfig
from generate_pairs.teachers.llamagen.transformer import OFFICIAL_SIZES, LlamaGenConfig
from generate_pairs.teachers.var.tokenizer import IGNORED_BUFFERS as VAE_BUFFERS
from generate_pairs.teachers.var.tokenizer import VarTokenizerConfig
from generate_pairs.teachers.var.transformer import IGNORED_BUFFERS as VAR_BUFFERS
from generate_pairs.teachers.var.transformer import official_var

Container = tuple[str, ...]
"""Keys that lead from the top of a file to its state dict."""

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face Hub."""

    repository: str
    name: str

    def __str__(self) -> str:
        return f"hf://{self.repository}/{self.name}"


@dataclass(frozen=True)
class Part:
    """A network's published weights.

    Attributes:
        file: where they are published.
        containers: where they can be in the file, the usual place first.
        ignored: endings of the names of other tensors that the file may contain.
        config: the network's shape.
    """

    file: HubFile
    containers: tuple[Container, ...]
    ignored: tuple[str, ...]
    config: Any


@dataclass(frozen=True)
class PublishedTeacher:
    """A teacher as its authors publish it, in two files."""

    family: str
    transformer: Part
    tokenizer: Part
    licence: str = "MIT"


def _var(depth: int, scales: tuple[int, ...] = SCALES_256, shared_adaln: bool = False) -> PublishedTeacher:
    return PublishedTeacher(
        "var",
        Part(
            HubFile("FoundationVision/var", f"var_d{depth}.pth"),
            ((), ("trainer", "var_wo_ddp")),
            VAR_BUFFERS,
            official_var(depth, scales, shared_adaln),
        ),
        Part(
            HubFile("FoundationVision/var", "vae_ch160v4096z32.pth"),
            ((), ("trainer", "vae_local")),
            VAE_BUFFERS,
            VarTokenizerConfig(scales=scales, image_size=16 * scales[-1]),
        ),
    )


def _llamagen(size: str, image_size: int, stage: int | None = None) -> PublishedTeacher:
    """A class-conditional teacher or, with a stage of the training, a text-conditional one."""
    if stage is None:
        repository, kind, file = "FoundationVision/LlamaGen", "c2i", f"c2i_{size}_{image_size}.pt"
    else:
        repository, kind, file = "peizesun/llamagen_t2i", "t2i", f"t2i_{size}_stage{stage}_{image_size}.pt"
    config = LlamaGenConfig(
        *OFFICIAL_SIZES[size],
        vocab_size=16384,
        num_tokens=(image_size // 16) ** 2,
        num_classes=1000,
        condition="class" if stage is None else "text",
        num_condition_tokens=1 if stage is None else 120,
    )
    return PublishedTeacher(
        "llamagen",
        # The two largest class-conditional files are bare state dicts.
        Part(HubFile(repository, file), (("model",), ("module",), ("state_dict",), ()), (), config),
        Part(
            HubFile(repository, f"vq_ds16_{kind}.pt"),
            (("model",),),
            VQ_BUFFERS,
            LlamaGenTokenizerConfig(image_size=image_size),
        ),
    )


TEACHERS: Mapping[str, PublishedTeacher] = {
    **{f"var-d{depth}": _var(depth) for depth in (16, 20, 24, 30)},
    "var-d36-512": _var(36, SCALES_512, shared_adaln=True),
    **{f"llamagen-{size.lower()}-256": _llamagen(size, 256) for size in ("B", "L")},
    **{f"llamagen-{size.lower()}-384": _llamagen(size, 384) for size in ("B", "L", "XL", "XXL", "3B")},
    "llamagen-t2i-256": _llamagen("XL", 256, stage=1),
    "llamagen-t2i-512": _llamagen("XL", 512, stage=2),
}
"""The keys are the names for `tokenleap teachers import --as`. Files of one size for 256 and for 384 pixels contain
tensors of the same shapes, so no check can distinguish them."""

VQ8 = Part(
    HubFile("FoundationVision/LlamaGen", "vq_ds8_c2i.pt"),
    (("model",),),
    VQ_BUFFERS,
    LlamaGenTokenizerConfig(ch_mult=(1, 2, 2, 4)),
)
"""LlamaGen's tokenizer with half the downsampling; no transformer for it is published."""
