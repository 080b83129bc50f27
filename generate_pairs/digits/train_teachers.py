"""Trains the embedded teachers on scikit-learn's digits and writes each to a safetensors file.

The tokenizer is trained first (reconstruction and codebook losses of VQ-VAE, arXiv 1711.00937), then the transformer on
its tokens (cross-entropy, with label dropout for classifier-free guidance). Both keep the averaged weights. A
text-conditional teacher is trained together with its text encoder, which gets a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generate_pairs.compute.threads import computing_threads
from generate_pairs.digits.dataset import NUM_CLASSES, augmented, load_digits_split
from generate_pairs.digits.recipes import RECIPES, Phase, Recipe
from generate_pairs.teachers.base import Teacher, TextCondition
from generate_pairs.teachers.checkpoints import save_teacher
from generate_pairs.teachers.llamagen.teacher import LlamaGenTeacher
from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizer
from generate_pairs.teachers.registry import build_teacher
from generate_pairs.teachers.var.tokenizer import VarTokenizer
from generate_pairs.text.digit_captions import digits_captions
from generate_pairs.text.small_t5 import PADDING, SmallT5, SmallTokenizer, pad_tokens
from generate_pairs.text.small_t5_encoder import save_encoder
from shards.core.callbacks import Report
from shards.core.errors import Refused

VQTokenizer = LlamaGenTokenizer | VarTokenizer

COMMITMENT = 0.25
"""Weight of the encoder's pull towards its codebook rows (arXiv 1711.00937, eq. 3)."""

REPORT_INTERVAL = 50
"""Steps between two calls of `report`."""


def train_teacher(name: str, out: Path, seed: int, report: Report) -> None:
    """Train an embedded teacher from random weights and write it, with its text encoder if it has one.

    The seed is of the initial weights, the augmentation and the order.

    Raises:
        Refused: there is no such recipe.
    """
    if name not in RECIPES:
        raise Refused(f"no recipe is called {name!r}: the recipes are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    before, total = recipe.tokenizer_phase.num_steps, recipe.num_steps
    # The rounding of a sum depends on the number of threads, and a seed should determine the teacher.
    with computing_threads(1):
        torch.manual_seed(seed)
        split = load_digits_split()
        images, labels = augmented(split.train_images, split.train_labels, recipe.copies, seed)
        teacher = build_teacher(recipe.family, recipe.transformer, recipe.tokenizer)
        tokenizer = teacher.tokenizer
        assert isinstance(tokenizer, LlamaGenTokenizer | VarTokenizer)
        train_tokenizer(tokenizer, images, recipe.tokenizer_phase, lambda done, _, note: report(done, total, note))
        encoder = None if recipe.encoder is None else SmallT5(recipe.encoder)
        if encoder is not None and isinstance(teacher, LlamaGenTeacher):
            forcing = text_forcing(teacher, encoder)
        else:
            forcing = class_forcing(teacher)
        train_transformer(
            teacher, forcing, images, labels, recipe, lambda done, _, note: report(before + done, total, note)
        )
    about = {"data": "scikit-learn load_digits, 1,297 training images", "seed": seed}
    save_teacher(teacher, recipe.family, out, about, torch.float16)
    if encoder is not None:
        save_encoder(encoder, out.with_name(f"{out.stem}.encoder.safetensors"), about, torch.float16)


def train_tokenizer(tokenizer: VQTokenizer, images: Tensor, phase: Phase, report: Report) -> None:
    """Train a VQ tokenizer on images; at the end it has the averaged weights."""
    init_codebook_from_data(tokenizer, images[:2_000])
    for step, indices, update in training_steps(tokenizer, len(images), phase):
        batch = images[indices]
        reconstructed, codebook_loss = reconstruct(tokenizer, batch)
        loss = F.mse_loss(reconstructed, batch)
        update(loss + codebook_loss)
        if step % REPORT_INTERVAL == 0:
            report(step, phase.num_steps, f"tokenizer, squared error {loss.item():.4f}")


@dataclass(frozen=True)
class TeacherForcing:
    """The second phase's trainable modules, and their logits under teacher forcing with dropped conditions.

    `logits` maps digits (B,) and tokens (B, L) to logits (B, L, V).
    """

    module: nn.Module
    logits: Callable[[Tensor, Tensor], Tensor]


def class_forcing(teacher: Teacher) -> TeacherForcing:
    """Teacher forcing of a class-conditional teacher: digits are its classes."""

    def logits(digits_B: Tensor, tokens_BL: Tensor) -> Tensor:
        # Dropped conditions train the unconditional prediction of classifier-free guidance.
        is_null_B = torch.rand(len(digits_B)) < teacher.transformer.config.class_dropout
        return teacher.forced_logits(torch.where(is_null_B, teacher.num_classes, digits_B), tokens_BL)

    return TeacherForcing(teacher.transformer, logits)


def text_forcing(teacher: LlamaGenTeacher, encoder: SmallT5) -> TeacherForcing:
    """Teacher forcing of a text-conditional teacher and its encoder: a random caption for each digit, uniformly."""
    config = teacher.transformer.config
    captions = digits_captions()
    token_lists = list(map(SmallTokenizer(encoder.config), captions))
    tokens_NT = pad_tokens(token_lists, config.num_condition_tokens)
    # Move the padding to the left, as the teacher needs it; the encoder depends only on distances between tokens.
    tokens_NT = torch.stack([row.roll(int((row == PADDING).sum())) for row in tokens_NT])

    def logits(digits_B: Tensor, tokens_BL: Tensor) -> Tensor:
        group_B = torch.randint(len(captions) // NUM_CLASSES, digits_B.shape)
        text_BT = tokens_NT[digits_B + NUM_CLASSES * group_B]
        condition = TextCondition(encoder(text_BT), text_BT != PADDING)
        is_null_B = torch.rand(len(digits_B)) < config.class_dropout
        return teacher.forced_text_logits(condition, tokens_BL, is_null_B)

    return TeacherForcing(nn.ModuleList([teacher.transformer, encoder]), logits)


def train_transformer(
    teacher: Teacher, forcing: TeacherForcing, images: Tensor, digits: Tensor, recipe: Recipe, report: Report
) -> None:
    """Train `forcing.module` on the tokens of images; at the end it has the averaged weights."""
    phase = recipe.transformer_phase
    with torch.no_grad():
        teacher.tokenizer.eval().requires_grad_(False)
        tokens = torch.cat([teacher.tokenizer.encode(batch) for batch in images.split(1_000)])
    for step, indices, update in training_steps(forcing.module, len(images), phase):
        logits_BLV = forcing.logits(digits[indices], tokens[indices])
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), tokens[indices].flatten())
        update(loss)
        if step % REPORT_INTERVAL == 0:
            report(step, phase.num_steps, f"transformer, cross-entropy {loss.item():.3f}")


def training_steps(
    module: nn.Module, num_examples: int, phase: Phase
) -> Iterator[tuple[int, Tensor, Callable[[Tensor], None]]]:
    """The training loop of both phases: AdamW with warmup, cosine decay and averaged weights.

    Yields:
        The step, the indices of its batch, and a function that updates the weights with the batch's loss.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=phase.learning_rate, betas=(0.9, 0.95), weight_decay=phase.weight_decay, fused=True
    )
    averaged = deepcopy(module)
    module.train()
    order = torch.empty(0, dtype=torch.int64)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    for step in range(1, phase.num_steps + 1):
        if len(order) < phase.batch_size:
            order = torch.cat([order, torch.randperm(num_examples)])
        indices, order = order[: phase.batch_size], order[phase.batch_size :]
        warm = min(1.0, step / 100)
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / phase.num_steps))
        yield step, indices, update
        decay = min(phase.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(module.parameters()), 1 - decay)
    module.load_state_dict(averaged.state_dict())
    module.eval()


@torch.no_grad()
def init_codebook_from_data(tokenizer: VQTokenizer, images: Tensor) -> None:
    """Set the codebook rows to random encoder outputs: rows far from all outputs would never be selected."""
    vectors_NC = tokenizer.encode_embeddings(images).movedim(1, -1).flatten(0, -2)
    weight_VC = tokenizer.quantize.embedding.weight
    weight_VC.copy_(vectors_NC[torch.randperm(len(vectors_NC))[: len(weight_VC)]])


def reconstruct(tokenizer: VQTokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """The reconstructed images, with the straight-through gradient, and the codebook loss."""
    f = tokenizer.encode_embeddings(images)
    _, quantised = tokenizer.quantize(f)
    codebook_loss = F.mse_loss(quantised, f.detach()) + COMMITMENT * F.mse_loss(f, quantised.detach())
    straight = f + (quantised - f).detach()
    return tokenizer.decoder(tokenizer.post_quant_conv(straight)), codebook_loss
