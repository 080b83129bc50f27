"""VAR as a teacher: official outputs, and decoding with a cache against forced passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from generate_pairs.teachers.base import to_unit_range
from generate_pairs.teachers.filtering import SamplingSettings, filter_var
from generate_pairs.teachers.var.teacher import VarConfig, VarTeacher, VarTransformer
from generate_pairs.teachers.var.tokenizer import VarTokenizer, VarTokenizerConfig

SMALL = VarConfig(width=32, depth=2, num_heads=2, vocab_size=24, codebook_dim=4, scales=(1, 2, 3, 4), num_classes=5)
LAYOUT = SMALL.layout


def make_teacher(config: VarConfig = SMALL, dtype: torch.dtype = torch.float64) -> VarTeacher:
    """A teacher with weights large enough that every part affects the logits."""
    torch.manual_seed(0)
    tokenizer_config = VarTokenizerConfig(
        config.vocab_size,
        config.codebook_dim,
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        scales=config.scales,
        image_size=2 * config.scales[-1],
    )
    teacher = VarTeacher(VarTransformer(config), VarTokenizer(tokenizer_config))
    for parameter in (*teacher.transformer.parameters(), *teacher.tokenizer.quantize.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher.to(dtype).eval()


def random_tokens(batch_size: int) -> Tensor:
    return torch.randint(SMALL.vocab_size, (batch_size, LAYOUT.num_tokens), generator=torch.manual_seed(1))


def forced(teacher: VarTeacher, labels: Tensor, tokens: Tensor, guidance_scale: float) -> Tensor:
    """Guided logits (B, L, V) of a decoding with these tokens."""
    decoding, steps = teacher.start(labels, guidance_scale), []
    for step in range(teacher.layout.num_steps):
        steps.append(decoding.logits())
        decoding.append(tokens[:, teacher.layout.span(step)])
    return torch.cat(steps, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["var_transformer_a", "var_transformer_b", "var_transformer_c"])
def test_logits_and_images_are_the_official_ones(golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    teacher = VarTeacher(VarTransformer(case.config("var")), VarTokenizer(case.config("vae"))).eval()
    teacher.transformer.load_state_dict(case.models["var"])
    teacher.tokenizer.load_state_dict(case.models["vae"])
    labels, tokens = case.inputs["label"], case.inputs["ids"]
    case.check_all(
        {
            "tf_logits": teacher.forced_logits(labels, tokens),
            "guided_logits": forced(teacher, labels, tokens, case.spec["config"]["cfg"]),
            "image_01": to_unit_range(teacher.tokenizer.decode(teacher.tokenizer.embed(tokens))),
        }
    )


@torch.no_grad()
@pytest.mark.parametrize("l2_attention", [True, False])
@pytest.mark.parametrize("shared_adaln", [True, False])
def test_cached_guided_decoding_combines_two_forced_passes(l2_attention: bool, shared_adaln: bool) -> None:
    teacher = make_teacher(replace(SMALL, l2_attention=l2_attention, shared_adaln=shared_adaln))
    labels, tokens = torch.tensor([4, 0, 2]), random_tokens(3)
    conditional = teacher.forced_logits(labels, tokens)
    null = teacher.forced_logits(torch.full_like(labels, SMALL.num_classes), tokens)
    t = 1.5 * torch.tensor(LAYOUT.step_of_token, dtype=torch.float64)[:, None] / 3
    expected = (1 + t) * conditional - t * null
    torch.testing.assert_close(forced(teacher, labels, tokens, 1.5), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_without_guidance_decoding_is_the_forced_pass() -> None:
    teacher, labels, tokens = make_teacher(), torch.tensor([4, 0]), random_tokens(2)
    decoding = teacher.start(labels, 0.0)
    assert decoding.caches[0].keys_BLHK.shape[0] == 2
    expected = teacher.forced_logits(labels, tokens)
    torch.testing.assert_close(forced(teacher, labels, tokens, 0.0), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_single_scale_is_not_guided() -> None:
    teacher, labels = make_teacher(replace(SMALL, scales=(1,))), torch.tensor([4, 0])
    tokens = torch.zeros(2, 1, dtype=torch.int64)
    expected = teacher.forced_logits(labels, tokens)
    torch.testing.assert_close(forced(teacher, labels, tokens, 3.0), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_logits_depend_only_on_earlier_scales() -> None:
    teacher, labels, tokens = make_teacher(), torch.tensor([3]), random_tokens(1)
    logits = teacher.forced_logits(labels, tokens)
    for token in range(LAYOUT.num_tokens):
        changed = tokens.clone()
        changed[0, token] = (changed[0, token] + 1) % SMALL.vocab_size
        moved = (teacher.forced_logits(labels, changed) - logits).abs().amax(-1)[0]
        later = torch.tensor(LAYOUT.step_of_token) > LAYOUT.step_of_token[token]
        assert torch.equal(moved > 1e-9, later)
        assert (moved[~later] == 0).all()


@torch.no_grad()
def test_rows_of_a_batch_are_independent() -> None:
    teacher, labels, tokens = make_teacher(), torch.tensor([4, 0, 2]), random_tokens(3)
    together = forced(teacher, labels, tokens, 2.0)
    alone = forced(teacher, labels[1:2], tokens[1:2], 2.0)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-12)


def test_only_parameters_of_the_transformer_get_gradients() -> None:
    teacher = make_teacher()
    logits = teacher.forced_logits(torch.tensor([4, SMALL.num_classes]), random_tokens(2))
    logits.logsumexp(-1).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in teacher.transformer.parameters())
    assert all(p.grad is None for p in teacher.tokenizer.parameters())


def test_decoding_keeps_no_graph() -> None:
    logits = forced(make_teacher(), torch.tensor([1]), random_tokens(1), 2.0)
    assert not logits.requires_grad


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    teacher = make_teacher(replace(SMALL, dropout=0.5))
    labels, tokens = torch.tensor([3]), random_tokens(1)
    assert torch.equal(teacher.forced_logits(labels, tokens), teacher.forced_logits(labels, tokens))
    teacher.train()
    assert not torch.equal(teacher.forced_logits(labels, tokens), teacher.forced_logits(labels, tokens))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32_logits_near_the_exact_ones(dtype: torch.dtype) -> None:
    labels, tokens = torch.tensor([4, 0]), random_tokens(2)
    teacher = make_teacher()
    expected = forced(teacher, labels, tokens, 1.0)
    all_half = forced(teacher.to(dtype), labels, tokens, 1.0)
    teacher.tokenizer.float()
    forced_half = teacher.forced_logits(labels, tokens)
    assert forced_half.dtype == torch.float32
    for logits in (all_half, forced(teacher, labels, tokens, 1.0)):
        assert logits.dtype == torch.float32
        assert (logits - expected).norm() / expected.norm() < 0.05


@torch.no_grad()
def test_a_new_teacher_has_nearly_uniform_logits() -> None:
    torch.manual_seed(0)
    transformer = VarTransformer(SMALL)
    logits = transformer(torch.tensor([0, 4]), torch.randn(2, LAYOUT.num_tokens - 1, 4))
    assert logits.abs().max() < 0.1


def test_filters_as_var_does() -> None:
    teacher, logits = make_teacher(), torch.randn(2, 3, 24, generator=torch.manual_seed(0))
    settings = SamplingSettings(guidance_scale=2.0, top_k=7, top_p=0.9)
    assert torch.equal(teacher.filter(logits, settings), filter_var(logits, 7, 0.9))
    with pytest.raises(ValueError, match="without a temperature"):
        teacher.filter(logits, replace(settings, temperature=0.9))


@pytest.mark.parametrize("label", [-1, 5])
def test_refuses_a_label_out_of_range(label: int) -> None:
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.4"):
        make_teacher().start(torch.tensor([0, label]), 2.0)


def test_refuses_another_tokenizer() -> None:
    teacher = make_teacher()
    with pytest.raises(ValueError, match="the transformer's vocab_size is 32, its tokenizer's 24"):
        VarTeacher(VarTransformer(replace(SMALL, vocab_size=32)), teacher.tokenizer)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"num_heads": 3}, "must be a multiple of num_heads 3"), ({"scales": (2, 4)}, "must start with 1")],
)
def test_refuses_an_impossible_shape(changes: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(SMALL, **changes)
