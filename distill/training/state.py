"""A training at one moment: all the state there is, and one update of it.

The state is weights, averages, optimizer and the position of the stream; timesteps are a function of the pair. So a
training that was killed goes on from its last checkpoint to the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config import DistillConfig
from distill.lineage import load_teacher_of_pairs
from distill.objective.losses import BatchTargets, MicroBatch
from distill.objective.targets import draw_timesteps, trajectory_states
from distill.student.student import Student
from distill.training.activations import checkpoint_layers
from distill.training.checkpoint import Checkpoint, training_identity
from distill.training.distributed import World
from distill.training.gradients import Gradients
from distill.training.memory import MemoryNeed, device_batch_size, free_bytes
from distill.training.optimizers import Optimizer, ema_decay, update_ema
from distill.training.precision import computing, weight_dtype
from distill.training.preflight import check_distillation
from generate_pairs.teachers.base import TokenLayout
from generate_pairs.text.encoders import texts_of_pairs
from shards.core.errors import Failed
from shards.dataset.manifest import Manifest
from shards.storage.paths import Location
from shards.streaming.stream import PairBatch, PairStream

EVAL_PAIRS = 1_000
"""Of the held-out pairs, and of those that are learned from, how many are looked at during training."""
MOST_LOGITS = 2**27
"""Logits that are held at once when pairs are looked at: 512 MiB."""


class Training:
    """A student on its way: everything that a checkpoint holds, and one update of it."""

    def __init__(
        self,
        config: DistillConfig,
        teacher_name: str,
        pairs_root: Location,
        size: int | None,
        world: World,
    ) -> None:
        """Load the teacher, open the pairs, initialise the student.

        Args:
            config: stage two's settings.
            teacher_name: the teacher that made the pairs.
            pairs_root: the pair data set.
            size: how many training pairs; None for all.
            world: the processes that train, and this one's device.

        Raises:
            Refused: the settings do not fit the teacher, it is not the one that made the pairs, there are fewer
                pairs than `size`, or the training does not fit the device's memory.
        """
        self.config = config
        self.world = world
        manifest = Manifest.open(pairs_root)
        check_distillation(config, TokenLayout(manifest.spec.tokens_per_step), manifest.spec.num_heldout)
        self.view = manifest.view(size)
        heldout = manifest.heldout()
        train = config.train
        self.stream = PairStream(
            pairs_root,
            self.view,
            train.batch_size,
            train.seed,
            world.rank,
            world.size,
            num_workers=train.num_workers,
            pin_memory=world.device.type == "cuda",
        )
        loaded = load_teacher_of_pairs(manifest, teacher_name)
        torch.manual_seed(train.seed)
        self.student = Student.from_teacher(
            loaded,
            config.student.timesteps,
            config.student.split,
            manifest.spec.fingerprint,
            self.view.size,
            initialise=config.student.initialise == "teacher",
            lineage=manifest.spec.lineage,
            noise_weight=config.student.noise_weight,
        )
        need, own_pairs = MemoryNeed.of(loaded, train), train.batch_size // world.size
        at_once = device_batch_size(need, own_pairs, train.device_batch_size, free_bytes(world))
        # All have to cut alike: the sum of a batch is rounded as it is cut.
        at_once = world.all_reduce_min(at_once)
        self.student.to(world.device, weight_dtype(train.precision))
        if manifest.spec.captions is not None:
            self.student = self.student.with_texts(texts_of_pairs(pairs_root, manifest.spec, world.device))
        if train.checkpoint_activations:
            checkpoint_layers(self.student.network)
        if train.compile:
            self.student.network.compile()
        self.layout = loaded.teacher.layout
        self.codebook_VC = self.student.tokenizer.codebook_VC
        watched = min(EVAL_PAIRS, heldout.size, self.view.size)
        self.heldout_batch = next(PairStream(pairs_root, heldout, min(EVAL_PAIRS, heldout.size), seed=0))
        self.train_batch = next(PairStream(pairs_root, manifest.view(watched), watched, seed=0))
        self.names = [name for name, _ in self.student.network.named_parameters()]
        self.parameters = list(self.student.network.parameters())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.gradients = Gradients(self.student, train, world, at_once)
        self.optimizer = Optimizer(self.student.network, train)
        self.step = 0
        self.seconds = 0.0
        self.waited_seconds = 0.0
        """What this process spent in updates, and how much of it waiting for pairs."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint has to agree with."""
        return training_identity(self.config, self.view)

    def update(self) -> dict[str, Tensor]:
        """One step of the optimizer; returns the loss and its parts, and the gradient's norm.

        Raises:
            Failed: the gradient is not finite, or another process is gone.
        """
        train, began = self.config.train, time.perf_counter()
        index_B, epoch_B = self.stream.upcoming()
        timestep_B = draw_timesteps(
            self.config.student.timesteps, train.timestep_weights, train.seed, epoch_B, index_B
        )
        asked_at = time.perf_counter()
        batch = next(self.stream)
        self.waited_seconds += time.perf_counter() - asked_at
        own = len(batch.index_B)
        first = self.world.rank * own
        micro_batch = self.micro_batch(batch, torch.from_numpy(timestep_B[first : first + own]))
        losses = self.gradients(micro_batch, BatchTargets.of(timestep_B, self.layout))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, train.max_grad_norm)
        if not torch.isfinite(norm):
            raise Failed(
                f"step {self.step + 1}: the loss is {losses.total.item()} and its gradient is not finite, "
                f"on pairs {index_B.tolist()}"
            )
        self.optimizer.step(self.step)
        update_ema(self.averages, self.parameters, ema_decay(self.step, train))
        self.step += 1
        self.seconds += time.perf_counter() - began
        return {"loss": losses.total, "gradient_norm": norm, **losses.parts}

    def micro_batch(self, batch: PairBatch, timestep_B: Tensor) -> MicroBatch:
        """A batch's pairs as the student is shown them at these timesteps, on its device."""
        device, dtype = self.world.device, self.codebook_VC.dtype
        noise_BLC = batch.noise_BLC.to(device, non_blocking=True).to(dtype)
        tokens_BL, label_B, timestep_B = (
            tensor.to(device, non_blocking=True) for tensor in (batch.tokens_BL, batch.label_B, timestep_B)
        )
        targets = trajectory_states(noise_BLC, tokens_BL, timestep_B, self.codebook_VC, self.layout)
        return MicroBatch(targets, tokens_BL, label_B)

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

    def eval_metrics(self) -> dict[str, float]:
        """`token_metrics` on held-out pairs and on pairs that are learned from: the gap between them is what the student
        knows by heart.
        """
        batches = {"heldout": self.heldout_batch, "train": self.train_batch}
        return {
            f"{kind}_{name}": value
            for kind, batch in batches.items()
            for name, value in self.token_metrics(batch).items()
        }

    @torch.no_grad()
    def token_metrics(self, batch: PairBatch) -> dict[str, float]:
        """Cross-entropy (nats a token) and token match of the averaged weights on pairs, from all noise.

        Every process looks at some of them, and all learn the result.
        """
        # All logits at once would take tens of gigabytes with a teacher of full size.
        at_once = max(1, MOST_LOGITS // (batch.tokens_BL.shape[1] * len(self.codebook_VC)))
        timestep_B = torch.zeros_like(batch.label_B)
        micro_batch = self.micro_batch(batch, timestep_B).every(self.world.rank, self.world.size)
        sums = torch.zeros(2, dtype=torch.float64)
        with self.averaged() as student:
            for part in (
                micro_batch.split(-(-len(micro_batch.labels_B) // at_once))
                if len(micro_batch.labels_B)
                else []
            ):
                with computing(self.world.device, self.config.train.precision):
                    logits_BLV, _ = student(part.targets.states_BLC, part.targets.timestep_B, part.labels_B)
                missed = F.cross_entropy(logits_BLV.flatten(0, 1), part.tokens_BL.flatten(), reduction="sum")
                matched = (logits_BLV.argmax(-1) == part.tokens_BL).sum()
                sums += torch.stack([missed.double(), matched.double()]).cpu()
        self.world.add([sums])
        count = batch.tokens_BL.numel()
        return {"token_loss": sums[0].item() / count, "token_match": sums[1].item() / count}

    def export(self, folder: Path) -> None:
        """Write the student with its averaged weights, which is what is published, in float32."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.data.copy_(average)
        self.student.float().export(folder)

    def checkpoint(self) -> Checkpoint:
        """All state, as it is now."""
        tensors = {f"weights.{name}": p.detach() for name, p in zip(self.names, self.parameters, strict=True)}
        tensors |= {f"averages.{name}": a for name, a in zip(self.names, self.averages, strict=True)}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimizer.state_of(parameter).items():
                tensors[f"optimizer.{key}.{name}"] = value
        state = {
            "stream": self.stream.state_dict(),
            "processes": self.world.size,
            "device_batch_size": self.gradients.device_batch_size,
        }
        return Checkpoint(self.step, tensors, state, self.identity)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        for name, parameter, average in zip(self.names, self.parameters, self.averages, strict=True):
            parameter.data.copy_(checkpoint.tensors[f"weights.{name}"])
            average.copy_(checkpoint.tensors[f"averages.{name}"])
            # A head whose loss has no weight never had a gradient, and has no state.
            state = {
                key.split(".")[1]: tensor.to(parameter.device, copy=True)
                for key, tensor in checkpoint.tensors.items()
                if key.startswith("optimizer.") and key.split(".", 2)[2] == name
            }
            if state:
                self.optimizer.restore(parameter, state)
        self.stream.load_state_dict(checkpoint.state["stream"])
        # How a batch is cut decides how its sum is rounded: what fitted before is kept, as far as nobody says otherwise.
        same = checkpoint.state["processes"] == self.world.size
        if same and self.config.train.device_batch_size == "auto":
            at_once = min(self.gradients.device_batch_size, checkpoint.state["device_batch_size"])
            self.gradients.device_batch_size = at_once
        self.step = checkpoint.step
