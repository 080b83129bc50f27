"""The official networks, imported from a checkout of microsoft/distilled_decoding, with random weights.

This repository contains no part of that code: its classes are used unchanged. Only the function that draws
tokens is wrapped during sampling, to read the logits and to end a sequence early.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.teachers.llamagen.transformer import LlamaGenConfig
from generate_pairs.teachers.var.transformer import VarConfig
from shards.core.errors import Refused

TOKENIZER_CH = 32
"""Channels of VAR's tokenizer. Sampling tokens needs only its codebook and its phi, which do not depend on it."""

LogitsCallback = Callable[[Tensor], Tensor | None]
"""Guided logits (B, s, V) of one AR step (not to be modified) -> its tokens (B, s), or None to draw them."""


class SequenceEnd(Exception):
    """Ends a sequence when the requested tokens are made."""


@dataclass(frozen=True)
class OfficialCode:
    """The official modules with the networks, and those whose functions draw tokens."""

    gpt: ModuleType
    generate: ModuleType
    gpt_student: ModuleType
    tokenizer: ModuleType
    var: ModuleType
    var_student: ModuleType

    @classmethod
    def of(cls, folder: Path) -> OfficialCode:
        """Import them from a checkout.

        Raises:
            Refused: the folder is not such a checkout, or one of its imports is missing.
        """
        families = {"LlamaGen": ("autoregressive", "utils"), "VAR": ("models", "dist")}
        for name in families:
            if not (folder / name).is_dir():
                raise Refused(
                    f"--official {folder}: no folder {name}; it must be a checkout of microsoft/distilled_decoding"
                )
        try:
            with importing_from(folder / "LlamaGen", families["LlamaGen"]):
                models = "autoregressive.models"
                llamagen = [import_module(f"{models}.{name}") for name in ("gpt", "generate", "dd")]
            with importing_from(folder / "VAR", families["VAR"], stub_modules()):
                var = [import_module(f"models.{name}") for name in ("vqvae", "var", "dd")]
        except ImportError as error:
            raise Refused(f"--official {folder}: the official code cannot be imported: {error}") from error
        return cls(*llamagen, *var)


def stub_modules() -> dict[str, ModuleType]:
    """Empty modules for packages that are not installed and that VAR's files import but never use for sampling."""
    modules = {}
    if find_spec("huggingface_hub") is None:
        # Base class for uploading models.
        modules["huggingface_hub"] = _module("huggingface_hub", PyTorchModelHubMixin=object)
    if find_spec("torchvision") is None:
        # Writes images to disk when debugging.
        modules["torchvision"] = _module("torchvision")
        modules["torchvision.utils"] = _module("torchvision.utils", save_image=None)
    return modules


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


@contextmanager
def importing_from(folder: Path, packages: Sequence[str], stubs: dict[str, ModuleType] | None = None) -> Iterator[None]:
    """Import from a folder; afterwards the names of its packages, which are common words, are removed again."""
    stubs = stubs or {}
    names = {*packages, *(name.split(".")[0] for name in stubs)}

    def pop() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in names}

    before = pop()
    sys.modules.update(stubs)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        pop()
        sys.modules.update(before)


@torch.no_grad()
def randomised(network: Any) -> Any:
    """Add noise to the weights, in place: the official initialisation sets some heads and gates close to zero."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        std = weight.shape[1] ** -0.5 if weight.ndim == 2 else 0.1
        weight.add_(torch.randn(weight.shape, generator=generator), alpha=std)
    return network


@dataclass(frozen=True)
class OfficialLlamaGen:
    """The official LlamaGen and its sampling loop."""

    code: OfficialCode
    network: Any

    @classmethod
    def of(cls, code: OfficialCode, config: LlamaGenConfig) -> OfficialLlamaGen:
        """Random weights, eval mode."""
        network = code.gpt.Transformer(code.gpt.ModelArgs(**_llamagen_arguments(config))).eval()
        return cls(code, randomised(network))

    def to(self, device: torch.device) -> OfficialLlamaGen:
        """Move it, in place."""
        self.network.to(device)
        return self

    def sample(
        self,
        labels_B: Tensor,
        settings: SamplingSettings,
        num_steps: int,
        on_logits: LogitsCallback | None = None,
    ) -> None:
        """Make the first `num_steps` tokens of a sequence, with the caches of a whole one."""
        draw, made = self.code.generate.sample, 0

        def sample(logits_BTV: Tensor, **filters: Any) -> tuple[Tensor, Tensor]:
            nonlocal made
            made += 1
            tokens_B1 = on_logits(logits_BTV[:, -1:]) if on_logits else None
            drawn = draw(logits_BTV, **filters) if tokens_B1 is None else (tokens_B1, logits_BTV)
            if made == num_steps:
                raise SequenceEnd
            return drawn

        with patch.object(self.code.generate, "sample", sample), suppress(SequenceEnd):
            self.code.generate.generate(
                self.network,
                labels_B,
                self.network.config.block_size,
                cfg_scale=settings.guidance_scale,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
            )


@dataclass(frozen=True)
class OfficialVar:
    """The official VAR and its sampling loop, up to the last scale's tokens: without the decoder."""

    code: OfficialCode
    network: Any
    tokenizer: Any

    @classmethod
    def of(cls, code: OfficialCode, config: VarConfig) -> OfficialVar:
        """Random weights, eval mode."""
        tokenizer, network = _var_networks(code, code.var.VAR, config)
        return cls(code, network, tokenizer)

    def to(self, device: torch.device) -> OfficialVar:
        """Move it, in place."""
        self.network.to(device)
        self.tokenizer.to(device)
        return self

    def sample(
        self,
        labels_B: Tensor,
        settings: SamplingSettings,
        num_steps: int,
        on_logits: LogitsCallback | None = None,
    ) -> None:
        """Make the tokens of the first `num_steps` scales."""
        draw, made = self.code.var.sample_with_top_k_top_p_, 0

        def sample(logits_BsV: Tensor, **filters: Any) -> Tensor:
            nonlocal made
            made += 1
            tokens_Bs = on_logits(logits_BsV) if on_logits else None
            drawn = draw(logits_BsV, **filters) if tokens_Bs is None else tokens_Bs[..., None]
            if made == num_steps:
                raise SequenceEnd
            return drawn

        # In the official code, top-p 0 means off.
        top_p = 0.0 if settings.top_p == 1.0 else settings.top_p
        with patch.object(self.code.var, "sample_with_top_k_top_p_", sample), suppress(SequenceEnd):
            self.network.autoregressive_infer_cfg(
                len(labels_B), labels_B, cfg=settings.guidance_scale, top_k=settings.top_k, top_p=top_p
            )


OfficialTeacher = OfficialLlamaGen | OfficialVar


@dataclass(frozen=True)
class OfficialStudent:
    """An official student; the order of the inputs differs between the two families."""

    network: Any
    takes_labels_first: bool

    @classmethod
    def llamagen(cls, code: OfficialCode, config: LlamaGenConfig, codebook_dim: int) -> OfficialStudent:
        """LlamaGen-DD, random weights, eval mode."""
        shape = _llamagen_arguments(config) | {"codebook_dim": codebook_dim}
        network = code.gpt_student.DDTransformer(code.gpt_student.ModelArgs(**shape)).eval()
        return cls(randomised(network), takes_labels_first=False)

    @classmethod
    def var(cls, code: OfficialCode, config: VarConfig) -> OfficialStudent:
        """VAR-DD, random weights, eval mode."""
        _, network = _var_networks(code, code.var_student.DD_Model, config)
        return cls(network, takes_labels_first=True)

    def to(self, device: torch.device) -> OfficialStudent:
        """Move it, in place."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def predict(self, noise_BLC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, L, V) and embeddings (B, L, C) of a whole sequence of noise, timestep 0."""
        timestep_B = torch.zeros(len(labels_B), device=labels_B.device)
        inputs = (labels_B, noise_BLC) if self.takes_labels_first else (noise_BLC, labels_B)
        embeddings_BLC, logits_BLV = self.network(*inputs, timestep_B)
        return logits_BLV, embeddings_BLC


def _llamagen_arguments(config: LlamaGenConfig) -> dict[str, Any]:
    return {
        "dim": config.width,
        "n_layer": config.depth,
        "n_head": config.num_heads,
        "multiple_of": config.ffn_multiple_of,
        "vocab_size": config.vocab_size,
        "block_size": config.num_tokens,
        "num_classes": config.num_classes,
    }


def _var_networks(code: OfficialCode, network_class: Any, config: VarConfig) -> tuple[Any, Any]:
    """Tokenizer and network over it; their constructors print."""
    with redirect_stdout(StringIO()):
        tokenizer = code.tokenizer.VQVAE(config.vocab_size, config.codebook_dim, TOKENIZER_CH, v_patch_nums=config.scales)
        network = network_class(
            tokenizer,
            num_classes=config.num_classes,
            depth=config.depth,
            embed_dim=config.width,
            num_heads=config.num_heads,
            shared_aln=config.shared_adaln,
            attn_l2_norm=config.l2_attention,
            patch_nums=config.scales,
        )
    return tokenizer.eval(), randomised(network.eval())
