"""A training at one moment: all the state there is, and one update of it.

The state is weights, averages, optimizer and the position of the stream; timesteps are a function of the pair. So a
training that was killed goes on from its last checkpoint to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.checkpoint import Checkpoint
from distill.checks import check_distillation, load_maker
from distill.config import DistillConfig
from distill.gradients import Gradients
from distill.optimizer import build_optimizer, ema_decay, learning_rate, update_ema
from distill.student import Student
from distill.targets import Targets, draw_timesteps, trajectory_states
from generate_pairs.teachers.base import TokenLayout
from shards.errors import Failed
from shards.locations import Location
from shards.manifest import Manifest, View
from shards.stream import PairBatch, PairStream

HELDOUT_PAIRS = 1_000
"""Of the held-out pairs, how many are looked at during training."""
MOST_LOGITS = 2**27
"""Logits that are held at once when pairs are looked at: 512 MiB."""


def training_identity(config: DistillConfig, view: View) -> dict[str, Any]:
    """All that a training depends on besides its length."""
    student = config.student.model_dump(mode="json")
    free = {"num_steps", "num_workers", "checkpoint_interval", "log_interval"}
    train = config.train.model_dump(mode="json", exclude=free)
    return {**student, **train, "pairs": view.size, "fingerprint": view.spec.fingerprint}


class Training:
    """A student on its way: everything that a checkpoint holds, and one update of it."""

    def __init__(
        self, config: DistillConfig, teacher_name: str, pairs_root: Location, size: int | None
    ) -> None:
        """Load the teacher, open the pairs, initialise the student.

        Raises:
            Refused: the settings do not fit the teacher, it is not the one that made the pairs, or there are fewer
                pairs than `size`.
        """
        self.config = config
        manifest = Manifest.open(pairs_root)
        check_distillation(config, TokenLayout(manifest.spec.tokens_per_step), manifest.spec.num_heldout)
        self.view = manifest.view(size)
        heldout = manifest.heldout()
        loaded = load_maker(manifest, teacher_name)
        torch.manual_seed(config.train.seed)
        self.student = Student.from_teacher(
            loaded,
            config.student.timesteps,
            config.student.split,
            manifest.spec.fingerprint,
            self.view.size,
            initialise=config.student.initialise == "teacher",
            lineage=manifest.spec.lineage,
        )
        self.layout = loaded.teacher.layout
        self.codebook_VC = loaded.teacher.codebook_VC
        self.stream = PairStream(
            pairs_root,
            self.view,
            config.train.batch_size,
            config.train.seed,
            num_workers=config.train.num_workers,
            pin_memory=self.codebook_VC.device.type == "cuda",
        )
        self.heldout_batch = next(PairStream(pairs_root, heldout, min(HELDOUT_PAIRS, heldout.size), seed=0))
        self.names = [name for name, _ in self.student.network.named_parameters()]
        self.parameters = list(self.student.network.parameters())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.gradients = Gradients(self.student, config.train)
        self.optimizer = build_optimizer(self.student.network, config.train)
        self.step = 0

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint has to agree with."""
        return training_identity(self.config, self.view)

    def update(self) -> dict[str, Tensor]:
        """One step of the optimizer; returns the loss and its parts, the gradient's norm and the token match."""
        train = self.config.train
        batch = next(self.stream)
        targets = self.targets(batch)
        losses = self.gradients(targets, batch.tokens_BL, batch.label_B)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, train)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, train.max_grad_norm)
        if not torch.isfinite(norm):
            raise Failed(
                f"step {self.step}: the loss is {losses.total.item()} and its gradient is not finite, "
                f"on pairs {batch.index_B.tolist()}"
            )
        self.optimizer.step()
        update_ema(self.averages, self.parameters, ema_decay(self.step, train))
        self.step += 1
        return {"loss": losses.total, "gradient_norm": norm, **losses.parts}

    def targets(self, batch: PairBatch) -> Targets:
        """The states of the trajectory that a batch's pairs are shown at."""
        timesteps, train = self.config.student.timesteps, self.config.train
        drawn_B = draw_timesteps(
            timesteps, train.timestep_weights, train.seed, batch.epoch_B.numpy(), batch.index_B.numpy()
        )
        return trajectory_states(
            batch.noise_BLC.float(), batch.tokens_BL, torch.from_numpy(drawn_B), self.codebook_VC, self.layout
        )

    @contextmanager
    def averaged(self) -> Iterator[Student]:
        """The student with its averaged weights, which is what is published, while the block lasts."""
        own, was_training = [parameter.data for parameter in self.parameters], self.student.network.training
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.data = average
        try:
            self.student.network.eval()
            yield self.student
        finally:
            self.student.network.train(was_training)
            for parameter, data in zip(self.parameters, own, strict=True):
                parameter.data = data

    def heldout_metrics(self) -> dict[str, float]:
        """`token_metrics` on held-out pairs."""
        return {f"heldout_{name}": value for name, value in self.token_metrics(self.heldout_batch).items()}

    @torch.no_grad()
    def token_metrics(self, batch: PairBatch) -> dict[str, float]:
        """Cross-entropy (nats a token) and token match of the averaged weights on pairs, from all noise."""
        # All logits at once would take tens of gigabytes with a teacher of full size.
        at_once = max(1, MOST_LOGITS // (batch.tokens_BL.shape[1] * len(self.codebook_VC)))
        missed, matched = 0.0, 0
        with self.averaged() as student:
            for noise_BLC, tokens_BL, label_B in zip(
                *(part.split(at_once) for part in (batch.noise_BLC, batch.tokens_BL, batch.label_B)),
                strict=True,
            ):
                logits_BLV, _ = student(noise_BLC.float(), torch.zeros_like(label_B), label_B)
                missed += F.cross_entropy(
                    logits_BLV.flatten(0, 1), tokens_BL.flatten(), reduction="sum"
                ).item()
                matched += int((logits_BLV.argmax(-1) == tokens_BL).sum())
        count = batch.tokens_BL.numel()
        return {"token_loss": missed / count, "token_match": matched / count}

    def export(self, folder: Path) -> None:
        """Write the student with its averaged weights, which is what is published."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.data.copy_(average)
        self.student.export(folder)

    def checkpoint(self) -> Checkpoint:
        """All state, as it is now."""
        tensors = {f"weights.{name}": p.detach() for name, p in zip(self.names, self.parameters, strict=True)}
        tensors |= {f"averages.{name}": a for name, a in zip(self.names, self.averages, strict=True)}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        return Checkpoint(self.step, tensors, {"stream": self.stream.state_dict()}, self.identity)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        for name, parameter, average in zip(self.names, self.parameters, self.averages, strict=True):
            parameter.data.copy_(checkpoint.tensors[f"weights.{name}"])
            average.copy_(checkpoint.tensors[f"averages.{name}"])
            # A head whose loss has no weight never had a gradient, and has no state.
            self.optimizer.state[parameter] = {
                key: checkpoint.tensors[f"optimizer.{key}.{name}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{key}.{name}" in checkpoint.tensors
            }
        self.stream.load_state_dict(checkpoint.state["stream"])
        self.step = checkpoint.step
