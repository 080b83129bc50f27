"""The state of a training, and one update of it.

The state consists of weights, averages, optimizer state and stream position; timesteps are a function of the pair. A
killed training therefore resumes from its last checkpoint to the same bytes.
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
from distill.training.precision import autocast_for, weight_dtype
from generate_pairs.teachers.checkpoints import LoadedTeacher
from generate_pairs.text.encoders import dataset_caption_features
from shards.core.errors import Failed
from shards.dataset.manifest import Manifest
from shards.streaming.stream import PairBatch, PairStream

EVAL_PAIRS = 1_000
"""Maximum number of held-out pairs, and of training pairs, in the evaluations during training."""
MAX_LOGITS = 2**27
"""Maximum number of logits that an evaluation computes at once: 512 MiB."""


class Training:
    """A student in training: everything that a checkpoint contains, and one update of it."""

    def __init__(
        self, config: DistillConfig, teacher: str | LoadedTeacher, manifest: Manifest, size: int | None, world: World
    ) -> None:
        """Open the pairs, load the teacher that generated them (or its name or file) and initialise the student.

        `manifest` is from `preflight.checked_manifest`, which checks the settings; None as `size` uses all pairs.

        Raises:
            Refused: The teacher did not generate the pairs, there are fewer pairs than `size`, the processes cannot
                share a batch equally, or the training does not fit in memory.
        """
        self.config = config
        self.world = world
        self.view = manifest.view(size)
        self.stream = self._open_stream(manifest)
        loaded = load_teacher_of_pairs(manifest, teacher)
        self.layout = loaded.teacher.layout
        self.student = self._new_student(loaded, manifest)
        need = MemoryNeed.of(loaded, config.train)
        own_pairs = config.train.batch_size // world.size
        at_once = device_batch_size(need, own_pairs, config.train.device_batch_size, free_bytes(world))
        # All processes must use the same number, because the division of a batch determines how its sum is rounded.
        at_once = world.all_reduce_min(at_once)
        self._prepare_student(manifest)
        self.codebook_VC = self.student.tokenizer.codebook_VC
        heldout = manifest.heldout()
        num_heldout = min(EVAL_PAIRS, heldout.size)
        num_train = min(num_heldout, self.view.size)
        self.heldout_batch = next(PairStream(manifest.root, heldout, num_heldout, seed=0))
        self.train_batch = next(PairStream(manifest.root, manifest.view(num_train), num_train, seed=0))
        self.names = [name for name, _ in self.student.network.named_parameters()]
        self.parameters = list(self.student.network.parameters())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.gradients = Gradients(self.student, config.train, world, at_once)
        self.optimizer = Optimizer(self.student.network, config.train)
        self.step = 0
        self.seconds = 0.0
        """Time that this process has spent in updates."""
        self.waited_seconds = 0.0
        """The part of `seconds` in which it waited for pairs."""

    def _open_stream(self, manifest: Manifest) -> PairStream:
        train = self.config.train
        return PairStream(
            manifest.root,
            self.view,
            train.batch_size,
            train.seed,
            self.world.rank,
            self.world.size,
            num_workers=train.num_workers,
            pin_memory=self.world.device.type == "cuda",
        )

    def _new_student(self, loaded: LoadedTeacher, manifest: Manifest) -> Student:
        settings = self.config.student
        torch.manual_seed(self.config.train.seed)
        return Student.from_teacher(
            loaded,
            settings.timesteps,
            settings.split,
            manifest.spec.fingerprint,
            self.view.size,
            initialise=settings.initialise == "teacher",
            lineage=manifest.spec.lineage,
            noise_weight=settings.noise_weight,
        )

    def _prepare_student(self, manifest: Manifest) -> None:
        """Move the student to its device and dtype, set captions, and apply checkpointing and compilation."""
        train, device = self.config.train, self.world.device
        self.student.to(device, weight_dtype(train.precision))
        if manifest.spec.captions is not None:
            features = dataset_caption_features(manifest.root, manifest.spec, device)
            self.student = self.student.with_texts(features)
        if train.checkpoint_activations:
            checkpoint_layers(self.student.network)
        if train.compile:
            self.student.network.compile()

    @property
    def identity(self) -> dict[str, Any]:
        """The identity that a checkpoint must have."""
        return training_identity(self.config, self.view)

    def update(self) -> dict[str, Tensor]:
        """Apply one optimizer step; returns the loss, its parts, and the gradient norm.

        Raises:
            Failed: The gradient is not finite, or another process has ended.
        """
        train, started = self.config.train, time.perf_counter()
        index_B, epoch_B = self.stream.upcoming()
        timestep_B = draw_timesteps(self.config.student.timesteps, train.timestep_weights, train.seed, epoch_B, index_B)
        wait_started = time.perf_counter()
        batch = next(self.stream)
        self.waited_seconds += time.perf_counter() - wait_started
        own_pairs = len(batch.index_B)
        first = self.world.rank * own_pairs
        micro_batch = self.micro_batch(batch, torch.from_numpy(timestep_B[first : first + own_pairs]))
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
        self.seconds += time.perf_counter() - started
        return {"loss": losses.total, "gradient_norm": norm, **losses.parts}

    def micro_batch(self, batch: PairBatch, timestep_B: Tensor) -> MicroBatch:
        """The student's inputs and targets for pairs at these timesteps, on its device."""
        device, dtype = self.world.device, self.codebook_VC.dtype
        noise_BLC = batch.noise_BLC.to(device, non_blocking=True).to(dtype)
        tokens_BL, label_B, timestep_B = (
            tensor.to(device, non_blocking=True) for tensor in (batch.tokens_BL, batch.label_B, timestep_B)
        )
        targets = trajectory_states(noise_BLC, tokens_BL, timestep_B, self.codebook_VC, self.layout)
        return MicroBatch(targets, tokens_BL, label_B)

    @contextmanager
    def averaged_weights(self) -> Iterator[Student]:
        """Use the averaged weights, which are those of the export, in this context; yields the student in eval mode."""
        trained, was_training = [p.data for p in self.parameters], self.student.network.training
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.data = average
        try:
            self.student.network.eval()
            yield self.student
        finally:
            self.student.network.train(was_training)
            for parameter, data in zip(self.parameters, trained, strict=True):
                parameter.data = data

    def eval_metrics(self) -> dict[str, float]:
        """`token_metrics` of held-out and of training pairs; their difference measures memorisation."""
        batches = {"heldout": self.heldout_batch, "train": self.train_batch}
        return {
            f"{kind}_{name}": value
            for kind, batch in batches.items()
            for name, value in self.token_metrics(batch).items()
        }

    @torch.no_grad()
    def token_metrics(self, batch: PairBatch) -> dict[str, float]:
        """Cross-entropy (nats a token) and token match of the averaged weights in one pass from noise.

        Each process evaluates a part of the pairs; all return the same result.
        """
        # With a full-size teacher, all logits at once would need tens of gigabytes.
        at_once = max(1, MAX_LOGITS // (batch.tokens_BL.shape[1] * len(self.codebook_VC)))
        timestep_B = torch.zeros_like(batch.label_B)
        own_pairs = self.micro_batch(batch, timestep_B).every(self.world.rank, self.world.size)
        sums = torch.zeros(2, dtype=torch.float64)
        with self.averaged_weights() as student:
            for part in own_pairs.split_by_size(at_once):
                with autocast_for(self.world.device, self.config.train.precision):
                    logits_BLV, _ = student(part.targets.states_BLC, part.targets.timestep_B, part.labels_B)
                loss = F.cross_entropy(logits_BLV.flatten(0, 1), part.tokens_BL.flatten(), reduction="sum")
                num_matches = (logits_BLV.argmax(-1) == part.tokens_BL).sum()
                sums += torch.stack([loss.double(), num_matches.double()]).cpu()
        self.world.all_reduce_sum([sums])
        count = batch.tokens_BL.numel()
        return {"token_loss": sums[0].item() / count, "token_match": sums[1].item() / count}

    def export(self, folder: Path) -> None:
        """Export the student with its averaged weights in float32."""
        averages = {id(p): average for p, average in zip(self.parameters, self.averages, strict=True)}
        # Tied parameters have several names.
        named = self.student.network.named_parameters(remove_duplicate=False)
        self.student.export(folder, {name: averages[id(p)] for name, p in named}, torch.float32)

    def checkpoint(self) -> Checkpoint:
        """The current state."""
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
        """Load the state of a checkpoint."""
        for name, parameter, average in zip(self.names, self.parameters, self.averages, strict=True):
            parameter.data.copy_(checkpoint.tensors[f"weights.{name}"])
            average.copy_(checkpoint.tensors[f"averages.{name}"])
            # A head without a loss never has a gradient, and no optimizer state.
            state = {
                key.split(".")[1]: tensor.to(parameter.device, copy=True)
                for key, tensor in checkpoint.tensors.items()
                if key.startswith("optimizer.") and key.split(".", 2)[2] == name
            }
            if state:
                self.optimizer.restore(parameter, state)
        self.stream.load_state_dict(checkpoint.state["stream"])
        # The division of a batch determines the rounding of its sum: with `auto`, keep the division of the checkpoint.
        same_size = checkpoint.state["processes"] == self.world.size
        if same_size and self.config.train.device_batch_size == "auto":
            at_once = min(self.gradients.device_batch_size, checkpoint.state["device_batch_size"])
            self.gradients.device_batch_size = at_once
        self.step = checkpoint.step
