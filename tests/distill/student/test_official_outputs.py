"""The students of both families give the outputs and images of the official code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.student.llamagen import LlamaGenStudent
from distill.student.sampler import sample_sequence
from distill.student.student import Student
from distill.student.var import VarStudent
from generate_pairs.teachers.base import to_unit_range
from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizer
from generate_pairs.teachers.var.tokenizer import VarTokenizer


class Passes:
    """The official sampling code around the student of a case, with one timestep for each sample."""

    def __init__(self, case: Any) -> None:
        """Load the weights of a case; a case without a tokenizer has a codebook among its inputs."""
        self.is_var = "dd" in case.models
        self.student: Any
        if self.is_var:
            layerwise = case.settings("dd")["layerwise_n_d_embed"]
            self.student = VarStudent(case.config("dd"), layerwise_embedding=layerwise)
        else:
            self.student = LlamaGenStudent(case.config("lgdd"), codebook_dim=case.settings("lgdd")["codebook_dim"])
        self.student.load_state_dict(case.models["dd" if self.is_var else "lgdd"])
        self.student.eval()
        if model := next((name for name in ("vae", "vq") if name in case.models), None):
            self.tokenizer = (VarTokenizer if self.is_var else LlamaGenTokenizer)(case.config(model)).eval()
            self.tokenizer.load_state_dict(case.models[model])
            self.codebook = self.tokenizer.codebook_VC
        else:
            self.codebook = torch.nn.functional.normalize(case.inputs["codebook"], dim=-1)
        self.labels, self.layout = case.inputs["label"], self.student.config.layout
        self.starts = torch.tensor(self.layout.starts)

    def is_data(self, timesteps: Tensor) -> Tensor:
        return (torch.arange(self.layout.num_tokens) < self.starts[timesteps][:, None])[..., None]

    def perturbed(self, x: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        return torch.where(self.is_data(timesteps), x, noise)

    def predicted(self, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embeddings of the student."""
        return self.student(x, self.starts[timesteps], self.labels)

    def final(self, x: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Final embeddings and logits: data positions stay, the others are predicted."""
        logits, embeddings = self.predicted(x, timesteps)
        nearest = torch.cdist(x, self.codebook.expand(len(x), -1, -1)).argmin(-1)
        certain = torch.full_like(logits, -torch.inf).scatter(-1, nearest[..., None], 0.0)
        is_data = self.is_data(timesteps)
        return torch.where(is_data, x, embeddings), torch.where(is_data, certain, logits)

    def sequence(self, embeddings: Tensor, logits: Tensor, split: int) -> Tensor:
        """Codebook rows of the likeliest tokens in AR steps below the split, embeddings after them."""
        below = torch.full((len(logits),), split)
        return torch.where(self.is_data(below), self.codebook[logits.argmax(-1)], embeddings)


@torch.no_grad()
@pytest.mark.parametrize("name", ["lg_dd_a", "var_dd_a", "var_dd_b"])
def test_outputs_are_the_official_ones(golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    passes, x = Passes(case), case.inputs["x"]
    results = {}
    for timestep in case.spec["config"]["timesteps"]:
        tag = "_".join(map(str, timestep)) if isinstance(timestep, list) else str(timestep)
        timesteps = torch.tensor(timestep).expand(len(x))
        logits, embeddings = passes.predicted(x, timesteps)
        final_embeddings, final_logits = passes.final(x, timesteps)
        results |= {
            f"logits_t{tag}": logits,
            f"tokens_t{tag}": embeddings,
            f"perturbed_t{tag}": passes.perturbed(x, timesteps, case.inputs["noise"]),
            f"final_tokens_t{tag}": final_embeddings,
            f"final_logits_t{tag}": final_logits,
            f"final_argmax_t{tag}": final_logits.argmax(-1),
        }
        for split in case.spec["config"]["splits"]:
            results[f"sequence_t{tag}_split{split}"] = passes.sequence(final_embeddings, final_logits, split)
    # The cases of VAR have no final results of complete data.
    case.check_all({name: results[name] for name in results if name in case.spec["outputs"]})


@torch.no_grad()
@pytest.mark.parametrize("name", ["lg_dd_loop_a", "var_dd_loop_a"])
def test_sampling_in_one_and_two_steps_gives_the_official_images(golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    passes, noise = Passes(case), case.inputs["noise"]
    results = {}
    for run in case.spec["config"]["runs"]:
        tag, x = "t" + "_".join(map(str, run["t_list"])), noise
        for step, timestep in enumerate(run["t_list"]):
            timesteps = torch.full((len(x),), timestep)
            x = passes.perturbed(x, timesteps, noise)
            results[f"{tag}_step{step}_input"] = x
            x = passes.sequence(*passes.final(x, timesteps), run["split"])
            results[f"{tag}_step{step}_sequence"] = x
        # The package's sampler ends in the same sequence.
        sampled = Student("", passes.student, passes.tokenizer, passes.layout, (0,), run["split"], "", 1)
        sequence = sample_sequence(sampled, noise, passes.labels, run["t_list"])
        results[f"{tag}_step{len(run['t_list']) - 1}_sequence"] = sequence.embeddings_BLC
        image = passes.tokenizer.decode(sequence.embeddings_BLC)
        # Official LlamaGen-DD does not clamp.
        results[f"{tag}_image_01"] = to_unit_range(image) if passes.is_var else (image + 1) / 2
    case.check_all(results)
