"""LlamaGen as a teacher: official outputs, and decoding with a cache against one forced pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from generate_pairs.teachers.base import TextCondition
from generate_pairs.teachers.filtering import SamplingSettings, filter_llamagen
from generate_pairs.teachers.llamagen.teacher import LlamaGenDecoding, LlamaGenTeacher
from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizer, LlamaGenTokenizerConfig
from generate_pairs.teachers.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer, rotary_2d

pytestmark = pytest.mark.quick

SMALL = LlamaGenConfig(width=32, depth=2, num_heads=2, vocab_size=24, num_tokens=16, num_classes=4, ffn_multiple_of=32)


def make_teacher(config: LlamaGenConfig, dtype: torch.dtype = torch.float32) -> LlamaGenTeacher:
    """A teacher with weights large enough that every part affects the logits."""
    torch.manual_seed(0)
    tokenizer_config = LlamaGenTokenizerConfig(
        config.vocab_size, 4, z_channels=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, image_size=8
    )
    teacher = LlamaGenTeacher(LlamaGenTransformer(config), LlamaGenTokenizer(tokenizer_config))
    for parameter in teacher.transformer.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)
    return teacher.to(dtype).eval()


def random_tokens(batch_size: int) -> Tensor:
    return torch.randint(SMALL.vocab_size, (batch_size, SMALL.num_tokens), generator=torch.manual_seed(1))


def forced(decoding: LlamaGenDecoding, tokens: Tensor) -> Tensor:
    """Logits (B, L, V) of a decoding with these tokens."""
    steps = []
    for token in tokens.split(1, dim=1):
        steps.append(decoding.logits())
        decoding.append(token)
    return torch.cat(steps, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["lg_c2i_a", "lg_c2i_b", "lg_t2i_b", "lg_t2i_c"])
def test_logits_are_the_official_ones(golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    config = case.config("gpt")
    teacher = make_teacher(config)
    teacher.transformer.load_state_dict(case.models["gpt"])
    given, settings = case.inputs, case.spec["config"]

    def start(scale: float, num_guided_tokens: int | None = None) -> LlamaGenDecoding:
        if config.condition == "text":
            return teacher.start_text(TextCondition(given["caption"], given["mask"].bool()), scale, num_guided_tokens)
        return teacher.start(given["label"], scale, num_guided_tokens)

    results = {f"guided_logits_cfg{scale:g}": forced(start(scale), given["ids"]) for scale in settings["cfg_scales"]}
    if config.condition == "class":
        results["tf_logits"] = teacher.forced_logits(given["label"], given["ids"])
    if "interval" in settings:
        scale, interval = settings["interval"]
        decoding = start(scale, num_guided_tokens=interval + 2)
        results[f"guided_logits_cfg{scale:g}_interval{interval}"] = forced(decoding, given["ids"])
    case.check_all(results)


def test_a_transformer_on_the_meta_device_has_its_rotation() -> None:
    with torch.device("meta"):
        transformer = LlamaGenTransformer(SMALL)
    assert transformer.output.weight.is_meta
    assert torch.equal(transformer.rotation, rotary_2d(SMALL))


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_decoding_with_a_cache_equals_forced_passes(scale: float) -> None:
    teacher = make_teacher(SMALL, torch.float64)
    labels, tokens = torch.tensor([3, 0, 2]), random_tokens(3)
    conditional = teacher.forced_logits(labels, tokens)
    null = teacher.forced_logits(torch.full_like(labels, SMALL.num_classes), tokens)
    expected = null + (conditional - null) * scale
    actual = forced(teacher.start(labels, scale), tokens)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    assert (conditional - null).abs().max() > 0.1


@torch.no_grad()
def test_guidance_can_stop_after_the_first_tokens() -> None:
    teacher = make_teacher(SMALL, torch.float64)
    labels, tokens = torch.tensor([3, 0]), random_tokens(2)
    guided, plain = (forced(teacher.start(labels, scale), tokens) for scale in (2.0, 1.0))
    partly = forced(teacher.start(labels, 2.0, num_guided_tokens=5), tokens)
    torch.testing.assert_close(partly, torch.cat([guided[:, :5], plain[:, 5:]], 1), rtol=0, atol=1e-10)
    never = forced(teacher.start(labels, 2.0, num_guided_tokens=0), tokens)
    torch.testing.assert_close(never, plain, rtol=0, atol=1e-10)


@torch.no_grad()
def test_rows_do_not_depend_on_the_rest_of_the_batch() -> None:
    teacher = make_teacher(SMALL, torch.float64)
    labels, tokens = torch.tensor([3, 0, 2]), random_tokens(3)
    together = forced(teacher.start(labels, 2.0), tokens)
    alone = forced(teacher.start(labels[1:2], 2.0), tokens[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_padding_of_a_caption_has_no_effect() -> None:
    config = replace(SMALL, condition="text", num_condition_tokens=6, caption_dim=8)
    teacher = make_teacher(config, torch.float64)
    features = torch.randn(1, 6, 8, dtype=torch.float64)
    seen = torch.tensor([[False, False, True, True, True, True]])
    other = features.clone()
    other[:, :2] = 9.0
    tokens = random_tokens(1)

    def logits(condition: TextCondition) -> Tensor:
        return forced(teacher.start_text(condition, 3.0), tokens)

    before, after = logits(TextCondition(features, seen)), logits(TextCondition(other, seen))
    assert torch.equal(before, after)
    for cut in (1, 2):
        shorter = TextCondition(features[:, cut:], seen[:, cut:])
        torch.testing.assert_close(logits(shorter), before, rtol=0, atol=1e-12)
    unpadded = logits(TextCondition(features, torch.ones_like(seen)))
    assert (unpadded - before).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cached_decoding_for_captions_is_the_forced_pass_guided(scale: float) -> None:
    config = replace(SMALL, condition="text", num_condition_tokens=6, caption_dim=8)
    teacher = make_teacher(config, torch.float64)
    features = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.manual_seed(2))
    condition = TextCondition(features, torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool())
    tokens = random_tokens(2)
    conditional = teacher.forced_text_logits(condition, tokens)
    null = teacher.forced_text_logits(condition, tokens, torch.tensor([True, True]))
    mixed = teacher.forced_text_logits(condition, tokens, torch.tensor([True, False]))
    assert (conditional - null).abs().max() > 1e-3
    assert torch.equal(mixed, torch.stack([null[0], conditional[1]]))
    torch.testing.assert_close(
        forced(teacher.start_text(condition, scale), tokens),
        null + (conditional - null) * scale,
        rtol=0,
        atol=1e-11,
    )


def test_a_token_changes_only_later_logits_and_gradients_flow() -> None:
    teacher = make_teacher(SMALL)
    tokens = random_tokens(1)
    changed = tokens.clone()
    changed[0, 6] = (tokens[0, 6] + 1) % SMALL.vocab_size
    first, second = (teacher.forced_logits(torch.tensor([1]), t) for t in (tokens, changed))
    differs = (first != second).any(-1)[0]
    assert differs.tolist() == [False] * 7 + [True] * 9
    first.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in teacher.transformer.parameters())


def test_rotation_encodes_row_and_column_and_zeroes_the_condition() -> None:
    config = replace(SMALL, width=16, num_heads=1)
    rotation = rotary_2d(config)
    assert rotation.shape == (17, 3, 1, 8)
    assert (rotation[0, :2] == 0).all()
    assert (rotation[:, 2] == 1).all()
    row, column = 2, 3
    frequencies = 10000.0 ** (-torch.arange(4) / 4)
    expected = torch.polar(torch.ones(8), torch.cat([row * frequencies, column * frequencies]))
    for part in (0, 1):
        torch.testing.assert_close(rotation[1 + 4 * row + column, part, 0], expected)


def test_filters_by_the_family_convention() -> None:
    settings = SamplingSettings(guidance_scale=2.0, top_k=5, top_p=0.9, temperature=0.7)
    logits = torch.randn(3, SMALL.vocab_size, generator=torch.manual_seed(2))
    expected = filter_llamagen(logits, 5, 0.9, 0.7)
    assert torch.equal(make_teacher(SMALL).filter(logits, settings), expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_returns_float32(dtype: torch.dtype) -> None:
    labels, tokens = torch.tensor([3, 0]), random_tokens(2)
    exact = forced(make_teacher(SMALL).start(labels, 2.0), tokens)
    teacher = make_teacher(SMALL, dtype)
    rounded = forced(teacher.start(labels, 2.0), tokens)
    assert rounded.dtype == torch.float32
    assert teacher.transformer.rotation.dtype == torch.complex64
    assert (rounded - exact).square().mean() < 2e-3 * exact.square().mean()


def test_dropout_acts_in_training_only() -> None:
    teacher = make_teacher(replace(SMALL, dropout=0.5))
    labels, tokens = torch.tensor([3, 0]), random_tokens(2)
    assert torch.equal(teacher.forced_logits(labels, tokens), make_teacher(SMALL).forced_logits(labels, tokens))
    teacher.train()
    assert not torch.equal(teacher.forced_logits(labels, tokens), teacher.forced_logits(labels, tokens))


def test_a_new_model_starts_from_uniform_logits() -> None:
    logits = LlamaGenTransformer(SMALL)(torch.zeros(1, 1, SMALL.width), random_tokens(1))
    assert torch.equal(logits, torch.zeros(1, 16, 24))


@pytest.mark.parametrize("labels", [[0, 4], [-1, 0]])
def test_refuses_labels_out_of_range(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3"):
        make_teacher(SMALL).start(torch.tensor(labels), 1.0)


def test_refuses_two_calls_of_logits_in_one_step() -> None:
    decoding = make_teacher(SMALL).start(torch.tensor([0]), 1.0)
    decoding.logits()
    with pytest.raises(RuntimeError, match="append"):
        decoding.logits()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: replace(SMALL, num_tokens=15), "num_tokens must be a square"),
        (lambda: replace(SMALL, num_heads=3), "multiple of 4 x num_heads"),
        (lambda: replace(SMALL, condition="image"), 'condition must be "class" or "text"'),
        (lambda: replace(SMALL, num_condition_tokens=2), "one condition token"),
    ],
)
def test_refuses_a_configuration_that_cannot_be_built(change: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        change()


def test_refuses_the_wrong_kind_of_condition_and_another_tokenizer() -> None:
    by_class = make_teacher(SMALL)
    by_text = make_teacher(replace(SMALL, condition="text", num_condition_tokens=6, caption_dim=8))
    condition, tokens = TextCondition(torch.zeros(1, 6, 8), torch.ones(1, 6).bool()), random_tokens(1)
    with pytest.raises(ValueError, match="use start_text"):
        by_text.start(torch.tensor([0]), 1.0)
    with pytest.raises(ValueError, match="use forced_text_logits"):
        by_text.forced_logits(torch.tensor([0]), tokens)
    with pytest.raises(ValueError, match="use start"):
        by_class.start_text(condition, 1.0)
    with pytest.raises(ValueError, match="use forced_logits"):
        by_class.forced_text_logits(condition, tokens)
    for shape in ((1, 7, 8), (1, 5, 8), (1, 6, 9)):
        with pytest.raises(ValueError, match=r"caption features must be \(B, T, 8\)"):
            by_text.start_text(TextCondition(torch.zeros(shape), condition.seen_BT), 1.0)
    with pytest.raises(ValueError, match="vocab_size is 25, its tokenizer's 24"):
        LlamaGenTeacher(LlamaGenTransformer(replace(SMALL, vocab_size=25)), by_class.tokenizer)
