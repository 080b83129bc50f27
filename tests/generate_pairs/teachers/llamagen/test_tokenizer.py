"""LlamaGen's tokenizer: official outputs, and a small configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizer, LlamaGenTokenizerConfig

DIGITS = LlamaGenTokenizerConfig(
    vocab_size=32,
    codebook_dim=3,
    l2_normalised=False,
    z_channels=16,
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    image_channels=1,
    image_size=8,
)


@pytest.fixture
def digits() -> LlamaGenTokenizer:
    torch.manual_seed(0)
    tokenizer = LlamaGenTokenizer(DIGITS).eval()
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight)
    return tokenizer


@torch.no_grad()
def test_encodes_and_decodes_as_the_official_model(golden: Callable[[str], Any]) -> None:
    case = golden("lg_vq_a")
    tokenizer = LlamaGenTokenizer(case.config("vq")).eval()
    tokenizer.load_state_dict(case.models["vq"])
    tokens, images = case.inputs["ids"], case.inputs["image"]
    h = tokenizer.encode_embeddings(images)
    encoded, rows = tokenizer.quantize(h)
    case.check_all(
        {
            "decode_image": tokenizer.decode(tokenizer.embed(tokens)),
            "encode_h": h,
            "encode_ids": encoded,
            "encode_quant": rows,
        }
    )
    torch.testing.assert_close(tokenizer.encode(images), encoded, rtol=0, atol=0)


def test_a_small_tokenizer_converts_images_to_a_grid_of_tokens_and_back(digits: LlamaGenTokenizer) -> None:
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    tokens = digits.encode(images)
    assert digits.image_shape == (1, 8, 8)
    assert tokens.shape == (5, 16)
    assert tokens.dtype == torch.int64
    assert digits.embed(tokens).shape == (5, 16, 3)
    assert digits.decode(digits.embed(tokens)).shape == images.shape


def test_tokens_are_the_nearest_rows_in_row_major_order(digits: LlamaGenTokenizer) -> None:
    h = torch.randn(2, 3, 4, 4)
    tokens, rows = digits.quantize(h)
    distances = torch.cdist(h.permute(0, 2, 3, 1).reshape(2, 16, 3), digits.codebook_VC.expand(2, -1, -1))
    assert torch.equal(tokens, distances.argmin(-1))
    assert torch.equal(rows[1, :, 2, 3], digits.codebook_VC[tokens[1, 2 * 4 + 3]])


def test_rows_are_normalised_only_if_configured(digits: LlamaGenTokenizer) -> None:
    raw = digits.quantize.embedding.weight
    assert torch.equal(digits.codebook_VC, raw)
    digits.quantize.l2_normalised = True
    torch.testing.assert_close(digits.codebook_VC, raw / raw.norm(dim=1, keepdim=True))
    # On the sphere only the direction of the encoder's output matters.
    h = torch.randn(2, 3, 4, 4)
    assert torch.equal(digits.quantize(h)[0], digits.quantize(7 * h)[0])
    embeddings = digits.embed(torch.arange(16)[None])
    assert not torch.equal(digits.decode(embeddings), digits.decode(2 * embeddings))


def test_the_rows_are_differentiable_in_the_codebook(digits: LlamaGenTokenizer) -> None:
    tokens, rows = digits.quantize(torch.randn(2, 3, 4, 4))
    rows.sum().backward()
    used = torch.zeros(32, dtype=torch.bool)
    used[tokens.flatten()] = True
    assert torch.equal(digits.quantize.embedding.weight.grad.abs().sum(1) > 0, used)


@torch.no_grad()
def test_images_do_not_depend_on_the_rest_of_the_batch(digits: LlamaGenTokenizer) -> None:
    digits.double()
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    embeddings = torch.randn(4, 16, 3, dtype=torch.float64)
    alone = digits.encode_embeddings(images[2:3]), digits.decode(embeddings[2:3])
    torch.testing.assert_close(digits.encode_embeddings(images)[2:3], alone[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(digits.decode(embeddings)[2:3], alone[1], rtol=0, atol=1e-12)


def test_refuses_an_image_size_that_its_levels_do_not_divide() -> None:
    with pytest.raises(ValueError, match="image_size 50 is not a multiple of 16"):
        LlamaGenTokenizerConfig(image_size=50)
