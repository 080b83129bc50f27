"""Golden cases: their configurations as classes of this project, and the comparison with stored results."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizerConfig
from generate_pairs.teachers.llamagen.transformer import LlamaGenConfig
from generate_pairs.teachers.var.tokenizer import VarTokenizerConfig
from generate_pairs.teachers.var.transformer import VarConfig

GOLDEN = Path(__file__).with_name("golden")


@cache
def recipe() -> ModuleType:
    """The module golden/recipe.py, which generates weights and inputs with numpy."""
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def table(name: str) -> Any:
    """One of the JSON files in golden/, such as `tensors/var_d16`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


@dataclass(frozen=True)
class Case:
    """One golden case.

    Attributes:
        name: the name of its two files.
        spec: the content of the JSON file.
        models: weights by official names, for each model's key.
        inputs: by name.
        expected: the stored arrays.
        ratios: receives the largest ratio of difference to tolerance.
    """

    name: str
    spec: dict[str, Any]
    models: dict[str, dict[str, Tensor]]
    inputs: dict[str, Tensor]
    expected: dict[str, Any]
    ratios: dict[str, float]

    def settings(self, model: str) -> dict[str, Any]:
        """The arguments of the official class of a model."""
        return self.spec["models"][model]["config"]

    def buffers(self, model: str) -> dict[str, Tensor]:
        """The other tensors in official files of a model, with the correct names, shapes and dtypes; every value is 7."""
        return {
            buffer["name"]: torch.full(buffer["shape"], 7, dtype=getattr(torch, buffer["dtype"]))
            for buffer in self.spec["models"][model]["buffers"]
        }

    def config(self, model: str) -> Any:
        """The configuration of a model's class in this project."""
        settings = self.settings(model)
        if model == "vae":
            scales = tuple(settings["v_patch_nums"])
            return VarTokenizerConfig(
                settings["vocab_size"],
                settings["z_channels"],
                settings["ch"],
                scales=scales,
                num_phi=settings["share_quant_resi"],
                image_size=16 * scales[-1],
            )
        if model == "vq":
            side = round(self.inputs["ids" if "ids" in self.inputs else "noise"].shape[1] ** 0.5)
            return LlamaGenTokenizerConfig(
                settings["codebook_size"],
                settings["codebook_embed_dim"],
                settings["codebook_l2_norm"],
                settings["z_channels"],
                image_size=16 * side,
            )
        return self._var(settings) if model in ("var", "dd") else self._llamagen(settings)

    def check(self, results: Mapping[str, Tensor]) -> None:
        """Compare some results of this case with the stored ones."""
        arrays = {name: result.numpy() for name, result in results.items()}
        report = recipe().compare(self.spec, self.expected, arrays)
        worst = max((worst / atol for _, _, worst, atol in report if atol), default=0.0)
        self.ratios[self.name] = max(worst, self.ratios.get(self.name, 0.0))
        wrong = [f"{name}: {worst:.3g} > {atol:.3g}" for name, ok, worst, atol in report if not ok]
        assert wrong == [], f"{self.name}: {wrong}"

    def check_all(self, results: Mapping[str, Tensor]) -> None:
        """Compare every result of this case with the stored ones."""
        assert set(results) == set(self.spec["outputs"])
        self.check(results)

    def _var(self, settings: dict[str, Any]) -> VarConfig:
        vae = self.settings("vae")
        return VarConfig(
            width=settings["embed_dim"],
            depth=settings["depth"],
            num_heads=settings["num_heads"],
            vocab_size=vae["vocab_size"],
            codebook_dim=vae["z_channels"],
            scales=tuple(settings["patch_nums"]),
            num_classes=settings["num_classes"],
            l2_attention=settings["attn_l2_norm"],
            shared_adaln=settings["shared_aln"],
            norm_eps=settings["norm_eps"],
        )

    def _llamagen(self, settings: dict[str, Any]) -> LlamaGenConfig:
        return LlamaGenConfig(
            width=settings["dim"],
            depth=settings["n_layer"],
            num_heads=settings["n_head"],
            vocab_size=settings["vocab_size"],
            num_tokens=settings["block_size"],
            num_classes=settings.get("num_classes", 1000),
            condition="class" if settings["model_type"] == "c2i" else "text",
            num_condition_tokens=settings["cls_token_num"],
            caption_dim=settings.get("caption_dim", 2048),
            ffn_multiple_of=settings.get("multiple_of", 256),
        )


def load_case(name: str, ratios: dict[str, float]) -> Case:
    """Load a case by the name of its files."""
    spec, models, inputs, expected = recipe().load_case(str(GOLDEN / f"{name}.json"))
    return Case(
        name,
        spec,
        {key: {name: torch.from_numpy(array) for name, array in tensors.items()} for key, tensors in models.items()},
        {key: torch.from_numpy(array) for key, array in inputs.items()},
        expected,
        ratios,
    )
