"""Published teachers made small: their shapes, and the same weights in every call."""

from __future__ import annotations

import pytest
import torch

from generate_pairs.config import TINY
from generate_pairs.teachers.checkpoints import load_teacher, refuse_unknown
from generate_pairs.teachers.filtering import SamplingSettings
from generate_pairs.teachers.published import TEACHERS
from generate_pairs.teachers.tiny_random import NUM_CLASSES, VOCAB_SIZE
from shards.core.errors import Refused

SQUARES_256 = tuple(side * side for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
SQUARES_512 = tuple(side * side for side in (1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
SHAPES = {
    **{f"var-d{depth}": (SQUARES_256, 32, 32) for depth in (16, 20, 24, 30)},
    "var-d36-512": (SQUARES_512, 32, 64),
    **{f"llamagen-{size}-256": ((1,) * 256, 8, 32) for size in ("b", "l", "t2i")},
    **{f"llamagen-{size}-384": ((1,) * 576, 8, 48) for size in ("b", "l", "xl", "xxl", "3b")},
    "llamagen-t2i-512": ((1,) * 1024, 8, 64),
}
"""Tokens per AR step and codebook dimension, as published; side of the small images."""

ONE_OF_EACH = ["var-d16", "var-d36-512", "llamagen-l-256"]


def test_every_published_teacher_has_an_entry() -> None:
    assert SHAPES.keys() == TEACHERS.keys()


@pytest.mark.parametrize("name", TEACHERS)
def test_layout_and_codebook_dimension_stay_and_sizes_shrink(name: str) -> None:
    tokens_per_step, codebook_dim, side = SHAPES[name]
    loaded = load_teacher(TINY + name)
    teacher = loaded.teacher
    assert (loaded.name, loaded.family) == (TINY + name, TEACHERS[name].family)
    assert teacher.layout.tokens_per_step == tokens_per_step
    assert teacher.codebook_VC.shape == (VOCAB_SIZE, codebook_dim)
    assert teacher.num_classes == NUM_CLASSES
    assert teacher.tokenizer.image_shape == (3, side, side)
    assert sum(parameter.numel() for parameter in teacher.parameters()) < 2_000_000


@pytest.mark.parametrize("name", ["var-d16", "var-d36-512", "llamagen-b-256", "llamagen-t2i-256"])
def test_the_weights_do_not_depend_on_the_global_generator(name: str) -> None:
    torch.manual_seed(1)
    once = load_teacher(TINY + name)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again = load_teacher(TINY + name)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert once.sha256 == again.sha256
    tensors = again.teacher.state_dict()
    for key, tensor in once.teacher.state_dict().items():
        assert torch.equal(tensor, tensors[key]), key


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_logits_depend_on_label_and_tokens_and_are_not_flat(name: str) -> None:
    teacher = load_teacher(TINY + name).teacher
    generator = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(VOCAB_SIZE, (2, teacher.layout.num_tokens), generator=generator)
    labels_B = torch.tensor([0, 1])
    with torch.inference_mode():
        logits_BLV = teacher.forced_logits(labels_B, tokens_BL)
        other_label_BLV = teacher.forced_logits(labels_B.flip(0), tokens_BL)
        other_tokens_BLV = teacher.forced_logits(labels_B, tokens_BL.flip(0))
    assert torch.isfinite(logits_BLV).all()
    assert 0.5 < logits_BLV.std(dim=-1).mean() < 2.0
    assert (logits_BLV - other_label_BLV).abs().mean() > 0.01
    assert torch.equal(logits_BLV[:, 0], other_tokens_BLV[:, 0])
    assert (logits_BLV - other_tokens_BLV)[:, 1:].abs().mean() > 0.01


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_papers_filters_leave_a_choice(name: str) -> None:
    teacher = load_teacher(TINY + name).teacher
    settings = {
        "var": SamplingSettings(2.0, top_k=900, top_p=0.95, temperature=1.0),
        "llamagen": SamplingSettings(2.0, top_k=8000, top_p=1.0, temperature=1.0),
    }[TEACHERS[name].family]
    with torch.inference_mode():
        logits_BsV = teacher.start(torch.tensor([3]), settings.guidance_scale).logits()
        log_probabilities_BsV = teacher.filter(logits_BsV, settings)
    assert (log_probabilities_BsV.isfinite().sum(dim=-1) > 100).all()
    assert (log_probabilities_BsV.exp().amax(dim=-1) < 0.5).all()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_images_are_neither_flat_nor_saturated(name: str) -> None:
    teacher = load_teacher(TINY + name).teacher
    tokens_1L = torch.randint(VOCAB_SIZE, (1, teacher.layout.num_tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image_1IHW = teacher.tokenizer.decode(teacher.tokenizer.embed(tokens_1L))
    assert image_1IHW.shape[1:] == teacher.tokenizer.image_shape
    assert 0.1 < image_1IHW.std() < 2.0


def test_an_unpublished_name_is_refused_with_the_published_ones() -> None:
    with pytest.raises(Refused, match=r"tiny-random/var-d17 is unknown: published teachers are var-d16, "):
        load_teacher("tiny-random/var-d17")
    with pytest.raises(Refused, match=r"tiny-random/digits is unknown"):
        load_teacher("tiny-random/digits")


def test_the_name_needs_no_file() -> None:
    refuse_unknown("tiny-random/var-d16")
    with pytest.raises(Refused, match="no teacher is called"):
        refuse_unknown("tiny-var-d16")
