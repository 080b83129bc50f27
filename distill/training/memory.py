"""Estimates the memory of a training before it allocates any, and derives the micro-batch size.

Every process stores the whole student: float32 weights, gradients, averages and the two moments of AdamW are 20 bytes a
parameter; the gradient of the next micro-batch adds 4, and a bfloat16 copy of the weights adds 2. With 80 GB, up to about
a billion parameters fit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import psutil
import torch

from distill.config import TrainConfig
from distill.student.networks import student_factory
from distill.training.activations import activation_bytes, checkpoint_layers, decoder_activation_bytes, layer_stack
from distill.training.distributed import World
from distill.training.precision import weight_dtype
from generate_pairs.teachers.checkpoints import LoadedTeacher
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.registry import build_tokenizer
from shards.core.errors import Refused
from shards.core.units import format_bytes

USABLE_FRACTION = 0.9
"""Fraction of the free memory that the estimate may use; the rest allows for fragmentation and other overhead."""

BFLOAT16_SHARE = {False: 0.68, True: 0.9}
"""Activation bytes in bfloat16 as a fraction of those in float32, without and with checkpointed activations.

Norms, losses and the inputs of layers stay float32. The values are 10 % above what autograd saves; with them, no peak on
an H100 was more than 5 % above the estimate (docs/explanation/benchmarks.md).
"""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training needs on one device."""

    num_parameters: int
    state: int
    """Weights, gradients, averages and optimizer state, and the bfloat16 weights if used."""
    tokenizer: int
    per_pair: int
    """Activations of one pair."""
    savers: tuple[str, ...] = ()
    """Settings that need less memory."""

    @classmethod
    def of(cls, loaded: LoadedTeacher, config: TrainConfig) -> MemoryNeed:
        """Estimate the memory of one process; allocates nothing.

        Raises:
            Refused: The settings checkpoint activations, and the network does not support it.
        """
        teacher, width = loaded.teacher, weight_dtype(config.precision).itemsize
        with on_meta_device():
            network = student_factory(loaded.family)(teacher.transformer.config, teacher.codebook_dim)
        count = sum(parameter.numel() for parameter in network.parameters())
        tokenizer = sum(tensor.numel() * width for tensor in teacher.tokenizer.state_dict().values())
        length, channels = teacher.layout.num_tokens, teacher.codebook_dim
        per_pair = activation_bytes(network, length, channels)
        if config.checkpoint_activations:
            layers = layer_stack(network)
            checkpoint_layers(network)
            layer_inputs = activation_bytes(network, length, channels)
            # One layer at a time is recomputed with all its activations.
            per_pair = layer_inputs + (per_pair - layer_inputs) // len(layers)
        if config.image_weight:
            with on_meta_device():
                decoder = build_tokenizer(loaded.family, asdict(teacher.tokenizer.config))
            per_pair += decoder_activation_bytes(decoder, length, channels)
        # The gradient of the logits.
        per_pair += length * len(teacher.tokenizer.codebook_VC) * 4
        state = count * width * 6
        if config.precision == "bfloat16":
            state += count * 2
            per_pair = int(per_pair * BFLOAT16_SHARE[config.checkpoint_activations])
        else:
            per_pair = per_pair * width // 4
        return cls(count, state, tokenizer, per_pair, _savers(config))

    def total(self, pairs: int) -> int:
        """Bytes with `pairs` pairs at once."""
        return self.state + self.tokenizer + self.per_pair * pairs

    def fitting(self, pairs: int, free: int) -> int:
        """Size of the largest of equal micro-batches of `pairs` pairs that fits in `free` bytes; 0 if none does."""
        for parts in range(1, pairs + 1):
            size = -(-pairs // parts)
            if self.total(size) <= free * USABLE_FRACTION:
                return size
        return 0

    def describe(self, pairs: int) -> str:
        """Describe the memory with `pairs` pairs at once."""
        return (
            f"{format_bytes(self.total(pairs))} a process: {format_bytes(self.state)} for weights, gradients, averages "
            f"and optimizer of {self.num_parameters:,} parameters, {format_bytes(self.tokenizer)} for the tokenizer, "
            f"about {format_bytes(self.per_pair * pairs)} for {pairs:,} pairs at once"
        )


def free_bytes(world: World) -> int:
    """Free memory for this process, before it allocates any."""
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0]
    return psutil.virtual_memory().available // world.local_size


def device_batch_size(need: MemoryNeed, pairs: int, requested: int | str, free: int) -> int:
    """Number of a process's `pairs` in a batch that it computes at once, with `free` bytes; `auto`: as many as fit.

    Raises:
        Refused: Not even one pair, or not the requested number, fits.
    """
    fits = need.fitting(pairs, free)
    size = fits if requested == "auto" else min(int(requested), pairs)
    if fits == 0 or need.total(size) > free * USABLE_FRACTION:
        fitting = [f"train.device_batch_size={fits} fits"] if fits else []
        saving = [f"{' or '.join(need.savers)} needs less"] if need.savers else []
        advice = ", and ".join(fitting + saving) or "no other setting needs less"
        raise Refused(
            f"this training does not fit: it needs {need.describe(max(size, 1))}; "
            f"{format_bytes(int(free * USABLE_FRACTION))} can be used here: {advice}"
        )
    return size


def _savers(config: TrainConfig) -> tuple[str, ...]:
    """Settings that need less memory; with checkpointed activations, bfloat16 needs no less than float32."""
    if config.checkpoint_activations:
        return ("train.precision=float32",) if config.precision == "float64" else ()
    precision = () if config.precision == "bfloat16" else ("train.precision=bfloat16",)
    return (*precision, "train.checkpoint_activations=true")
