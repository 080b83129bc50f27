"""Runs GPU computations on a simulated device, whose tensors have a shape and a device but no values.

As on a GPU, torch refuses to mix tensors of two devices, so a tensor that was left on the CPU is detected without a GPU.
`python pretended_device.py TEACHER` prints the result of each computation as JSON: null, or the place of the error. The
flow map is excluded: it removes finished rows, so its shapes depend on values.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from distill.config import TrainConfig
from distill.objective.losses import BatchTargets, MicroBatch
from distill.objective.targets import trajectory_states
from distill.sampling.method_spec import PreTrained
from distill.sampling.teacher_involved import sample_teacher_involved
from distill.student.sampler import sample_sequence
from distill.student.student import Student
from distill.training.distributed import World
from distill.training.gradients import Gradients
from distill.training.optimizers import Optimizer, update_ema
from generate_pairs.teachers.base import TextCondition
from generate_pairs.teachers.checkpoints import LoadedTeacher, load_teacher
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.trajectory import Draw, generate_tokens

B = 4
SETTINGS = SamplingSettings(guidance_scale=1.5, top_k=5, top_p=0.9)
TIMESTEPS = (0, 2)


class PretendedTexts:
    """Random features of captions with three tokens."""

    captions = ("one",) * B

    def __init__(self, width: int, device: torch.device) -> None:
        self.width, self.device = width, device

    def __call__(self, labels_B: Tensor) -> TextCondition:
        features_BTE = torch.rand(len(labels_B), 3, self.width, device=self.device)
        return TextCondition(features_BTE, torch.ones(len(labels_B), 3, dtype=torch.int64, device=self.device) > 0)


def moved(module: Any, device: torch.device) -> Any:
    """Move parameters and buffers of a module to the device, but not its other tensors."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if isinstance(tensor, nn.Parameter):
                    tensors[name] = nn.Parameter(like(tensor, device), tensor.requires_grad)
                elif tensor is not None:
                    tensors[name] = like(tensor, device)
    return module


def like(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of this shape and dtype on the device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def computations(loaded: LoadedTeacher, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Computations by name; each must return a tensor on the device."""
    layout, C = loaded.teacher.layout, loaded.teacher.codebook_dim
    L = layout.num_tokens
    # Created first: it copies the teacher's tokenizer, and tensors of the pretended device cannot be copied.
    student = Student.from_teacher(loaded, TIMESTEPS, layout.num_steps, "f" * 8, 10, initialise=False, noise_weight=0.5)
    teacher, student = moved(loaded.teacher, device), moved(student, device)
    # Normally computed from the codebook, which has no values here.
    student.codebook_spread = 1.0
    if teacher.is_text_conditional:
        teacher.texts = student.texts = PretendedTexts(teacher.transformer.config.caption_dim, device)
    noise_BLC = torch.rand(B, L, C, device=device)
    uniform_BL = torch.rand(B, L, dtype=torch.float64, device=device)
    tokens_BL, labels_B = (torch.zeros(*shape, dtype=torch.int64, device=device) for shape in ((B, L), (B,)))
    timestep_B = np.array([0, 0, 2, 2])

    def forced() -> Tensor:
        return teacher.forced_logits(labels_B, tokens_BL)

    def trained(optimizer: str, **weights: float) -> Tensor:
        config = TrainConfig(batch_size=B, threads=1, optimizer=optimizer, **weights)
        gradients = Gradients(student, config, World(device=device), B)
        targets = trajectory_states(
            noise_BLC,
            tokens_BL,
            torch.from_numpy(timestep_B).to(device),
            student.tokenizer.codebook_VC,
            layout,
        )
        # Called directly, because only this thread simulates the device.
        _, gradient = gradients._gradient(MicroBatch(targets, tokens_BL, labels_B), BatchTargets.of(timestep_B, layout))
        gradients._accumulate(gradient)
        averages = [parameter.detach().clone() for parameter in gradients.parameters]
        norm = nn.utils.clip_grad_norm_(gradients.parameters, 1.0)
        Optimizer(student.network, config).step(0)
        update_ema(averages, gradients.parameters, 0.9)
        return norm

    def involved() -> Tensor:
        return sample_teacher_involved(
            PreTrained(2, 3), teacher, student.eval(), noise_BLC, labels_B, SETTINGS, Draw(uniform_BL)
        ).tokens_BL

    def mixed() -> Tensor:
        return generate_tokens(teacher, labels_B, SETTINGS, Draw(uniform_BL.cpu()))

    named: dict[str, Callable[[], Any]] = {
        "mixed on purpose": mixed,
        "walk": lambda: generate_tokens(teacher, labels_B, SETTINGS, Draw(uniform_BL)),
        "decode": lambda: teacher.tokenizer.decode(teacher.tokenizer.embed(tokens_BL)),
        "adamw": lambda: trained("adamw", embedding_weight=1.0),
        "muon": lambda: trained("muon"),
        "image loss": lambda: trained("adamw", image_weight=1.0),
        "two steps": lambda: sample_sequence(student.eval(), noise_BLC, labels_B, TIMESTEPS).embeddings_BLC,
        "teacher in between": involved,
    }
    return named if teacher.is_text_conditional else {**named, "forced": forced}


def outcome(computation: Callable[[], Any], device: torch.device) -> str | None:
    """None if the result is on the device; otherwise the error and its place."""
    try:
        answer = computation()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in where if "torch" not in Path(frame.filename).parts][-1]
        return f"{Path(own.filename).name}:{own.lineno}: {error}".partition("\n")[0]
    return None if answer.device == device else f"the answer is on {answer.device}"


def main() -> None:
    _setup_privateuseone_for_python_backend("pretended")
    device, make, loaded = torch.device("pretended:0"), torch.tensor, load_teacher(sys.argv[1])
    mode = FakeTensorMode(
        allow_non_fake_inputs=True,
        shape_env=ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True),
    )

    def tensor(data: Any, device: Any = None, **more: Any) -> Tensor:
        # Tensors cannot be created with values on the simulated device, but can be moved there.
        created = make(data, **more)
        return created if device is None else created.to(device)

    with (
        mode,
        patch.object(torch, "tensor", tensor),
        # Conditions on missing values all check for errors: answer that there are none.
        patch.object(FakeTensor, "__bool__", lambda _: False),
    ):
        results = {name: outcome(each, device) for name, each in computations(loaded, device).items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
