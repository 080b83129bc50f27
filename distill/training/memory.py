"""Whether a training fits the memory of a device, computed before anything is allocated for it.

Every process holds the whole student: float32 weights, their gradients, averages and two moments of AdamW are 20 bytes a
parameter, the gradient of another part 4 more, bfloat16's copy of the weights 2. On 80 GB that is meant for up to about a
billion parameters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import psutil
import torch

from distill.config import TrainConfig
from distill.student.networks import build_network
from distill.training.activations import checkpoint_layers, kept_bytes, kept_bytes_of_images, layers_of
from distill.training.distributed import World
from distill.training.precision import weight_dtype
from generate_pairs.teachers.checkpoints import LoadedTeacher
from generate_pairs.teachers.meta_device import on_meta_device
from generate_pairs.teachers.registry import build_tokenizer
from shards.core.errors import Refused

USABLE = 0.9
"""Of the free memory: the rest is for what nobody counted, as the room between blocks."""

BFLOAT16_SHARE = {False: 0.68, True: 0.9}
"""What a pair takes in bfloat16, of what float32 keeps, without and with checkpointed activations: norms, losses and what
goes from layer to layer stay float32. It is a tenth more than autograd keeps: with it, no peak on an H100
was more than 5 % above what is reckoned (docs/benchmarks.md).
"""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training needs on one device.

    Attributes:
        num_parameters: that are trained.
        state: weights, gradients, averages, optimizer; and the weights in bfloat16, where that is computed with.
        tokenizer: codebook and decoder.
        per_pair: what the gradient of one pair keeps of its forward pass.
        savers: settings that would take less.
    """

    num_parameters: int
    state: int
    tokenizer: int
    per_pair: int
    savers: tuple[str, ...] = ()

    @classmethod
    def of(cls, loaded: LoadedTeacher, config: TrainConfig) -> MemoryNeed:
        """What training a teacher's student needs in one process; allocates nothing.

        Raises:
            Refused: activations cannot be checkpointed in this family's network.
        """
        teacher, width = loaded.teacher, weight_dtype(config.precision).itemsize
        with on_meta_device():
            network = build_network(loaded.family, teacher.transformer.config, teacher.codebook_dim)
        count = sum(parameter.numel() for parameter in network.parameters())
        tokenizer = sum(tensor.numel() * width for tensor in teacher.tokenizer.state_dict().values())
        length, channels = teacher.layout.num_tokens, teacher.codebook_dim
        kept = kept_bytes(network, length, channels)
        if config.checkpoint_activations:
            layers = layers_of(network)
            checkpoint_layers(network)
            between = kept_bytes(network, length, channels)
            # Of one layer at a time everything.
            kept = between + (kept - between) // len(layers)
        if config.image_weight:
            with on_meta_device():
                decoder = build_tokenizer(loaded.family, asdict(teacher.tokenizer.config))
            kept += kept_bytes_of_images(decoder, length, channels)
        # What the gradient of the logits is written to.
        kept += length * len(teacher.tokenizer.codebook_VC) * 4
        state = count * width * 6
        if config.precision == "bfloat16":
            state += count * 2
            kept = int(kept * BFLOAT16_SHARE[config.checkpoint_activations])
        else:
            kept = kept * width // 4
        return cls(count, state, tokenizer, kept, _savers(config))

    def total(self, pairs: int) -> int:
        """With so many pairs at once."""
        return self.state + self.tokenizer + self.per_pair * pairs

    def fitting(self, pairs: int, free: int) -> int:
        """How many of `pairs` can be computed at once, as one of equal parts; 0 where not even one can."""
        for parts in range(1, pairs + 1):
            at_once = -(-pairs // parts)
            if self.total(at_once) <= free * USABLE:
                return at_once
        return 0

    def describe(self, pairs: int) -> str:
        """What takes how much."""
        return (
            f"{_gigabytes(self.total(pairs))} a process: {_gigabytes(self.state)} for weights, gradients, averages and "
            f"optimizer of {self.num_parameters:,} parameters, {_gigabytes(self.tokenizer)} for the tokenizer, about "
            f"{_gigabytes(self.per_pair * pairs)} for {pairs:,} pairs at once"
        )


def free_bytes(world: World) -> int:
    """Memory that is free for this process, before it has allocated anything."""
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0]
    return psutil.virtual_memory().available // world.on_host


def device_batch_size(need: MemoryNeed, pairs: int, asked: int | str, free: int) -> int:
    """How many of a process's pairs of a batch are computed at once.

    Args:
        need: of the training.
        pairs: of this process in a batch.
        asked: a number, or `auto` for as many as fit.
        free: bytes that the process may take.

    Raises:
        Refused: not even one pair fits, or not as many as are asked.
    """
    fits = need.fitting(pairs, free)
    at_once = fits if asked == "auto" else min(int(asked), pairs)
    if fits == 0 or need.total(at_once) > free * USABLE:
        fitting = [f"train.device_batch_size={fits} fits"] if fits else []
        saving = [f"less is taken with {' or '.join(need.savers)}"] if need.savers else []
        ways = ", and ".join(fitting + saving) or "no other setting takes less"
        raise Refused(
            f"this training does not fit: it needs {need.describe(max(at_once, 1))}; "
            f"{_gigabytes(int(free * USABLE))} can be used here: {ways}"
        )
    return at_once


def _savers(config: TrainConfig) -> tuple[str, ...]:
    """Settings that take less than these; where activations are checkpointed, bfloat16 takes no less than float32."""
    if config.checkpoint_activations:
        return ("train.precision=float32",) if config.precision == "float64" else ()
    precision = () if config.precision == "bfloat16" else ("train.precision=bfloat16",)
    return (*precision, "train.checkpoint_activations=true")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
