"""VAR's tokenizer: official outputs, and which scales its maps depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from generate_pairs.teachers.var.tokenizer import VarTokenizer, VarTokenizerConfig, phi_index

DIGITS = VarTokenizerConfig(
    vocab_size=24,
    codebook_dim=4,
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    scales=(1, 2, 3, 4),
    image_channels=1,
    image_size=8,
)


@pytest.fixture
def digits() -> VarTokenizer:
    """A tokenizer of 8 x 8 one-channel images in float64."""
    torch.manual_seed(0)
    tokenizer = VarTokenizer(DIGITS)
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight)
    return tokenizer.double().eval()


def random_tokens(batch_size: int) -> Tensor:
    return torch.randint(DIGITS.vocab_size, (batch_size, DIGITS.layout.num_tokens), generator=torch.manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["var_vqvae_a", "var_vqvae_b", "var_vqvae_o"])
def test_maps_images_and_tokens_are_the_official_ones(golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    tokenizer = VarTokenizer(case.config("vae"))
    tokenizer.load_state_dict(case.models["vae"])
    tokens, images = case.inputs["ids"], case.inputs["image"]
    embeddings, next_inputs = tokenizer.embed(tokens), tokenizer.next_inputs(tokens)
    case.check_all(
        {
            "fhat_after_scale": torch.stack(list(tokenizer.quantize.accumulate(embeddings)), dim=1),
            "next_input_area": next_inputs.transpose(1, 2),
            "var_input": next_inputs,
            "decode_image": tokenizer.decode(embeddings).clamp(-1, 1),
            "encode_f": tokenizer.encode_embeddings(images),
            "encode_ids": tokenizer.encode(images),
        }
    )


def test_phi_of_every_scale_is_the_official_one(golden_table: Callable[[str], Any]) -> None:
    tables = golden_table("phi_index")
    for num_phi in filter(str.isdigit, tables):
        for num_scales, expected in tables[num_phi]["index_for_number_of_scales"].items():
            assert phi_index(int(num_scales), int(num_phi)) == tuple(expected)
    assert phi_index(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


def test_a_single_scale_uses_the_first_phi() -> None:
    assert phi_index(1, 4) == (0,)


@torch.no_grad()
def test_images_become_tokens_and_tokens_images(digits: VarTokenizer) -> None:
    images = torch.rand(3, 1, 8, 8).double()
    tokens = digits.encode(images)
    assert (tokens.shape, tokens.dtype) == ((3, 30), torch.int64)
    assert digits.decode(digits.embed(tokens)).shape == (3, *digits.image_shape)


@torch.no_grad()
def test_rows_of_a_batch_are_independent(digits: VarTokenizer) -> None:
    images, tokens = torch.rand(3, 1, 8, 8).double(), random_tokens(3)
    assert torch.equal(digits.encode(images)[1:2], digits.encode(images[1:2]))
    for function in (digits.next_inputs, lambda tokens: digits.decode(digits.embed(tokens))):
        torch.testing.assert_close(function(tokens)[1:2], function(tokens[1:2]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_each_scale_quantises_the_residual_to_the_nearest_rows(digits: VarTokenizer) -> None:
    f = torch.randn(2, 4, 4, 4).double()
    tokens, f_hat = digits.quantize(f)
    torch.testing.assert_close(f_hat, digits.f_hat(digits.embed(tokens)), rtol=0, atol=1e-12)
    before = [torch.zeros_like(f), *digits.quantize.accumulate(digits.embed(tokens))]
    for scale, side in enumerate(DIGITS.scales):
        residual = torch.nn.functional.interpolate(f - before[scale], size=(side, side), mode="area")
        distances = torch.cdist(residual.flatten(2).transpose(1, 2), digits.codebook_VC)
        assert torch.equal(tokens[:, DIGITS.layout.span(scale)], distances.argmin(-1))


def test_quantisation_has_gradients_for_codebook_and_phi_but_not_for_the_encoder(digits: VarTokenizer) -> None:
    f = torch.randn(2, 4, 4, 4).double().requires_grad_()
    _, f_hat = digits.quantize(f)
    (f_hat - f.detach()).square().mean().backward()
    assert f.grad is None
    assert all(parameter.grad.abs().max() > 0 for parameter in digits.quantize.parameters())


@torch.no_grad()
def test_the_input_of_a_scale_depends_only_on_earlier_scales(digits: VarTokenizer) -> None:
    layout, tokens = DIGITS.layout, random_tokens(1)
    inputs = digits.next_inputs(tokens)
    assert inputs.shape == (1, layout.num_tokens - 1, DIGITS.codebook_dim)
    for scale in range(layout.num_steps):
        changed = tokens.clone()
        changed[:, layout.span(scale)] = (changed[:, layout.span(scale)] + 1) % DIGITS.vocab_size
        moved = (digits.next_inputs(changed) != inputs).any(-1)[0]
        # Input row i belongs to token i + 1.
        step_of_input = torch.tensor(layout.step_of_token[1:])
        assert torch.equal(moved, step_of_input > scale)


@torch.no_grad()
def test_the_first_scales_alone_give_a_latent_map(digits: VarTokenizer) -> None:
    embeddings = digits.embed(random_tokens(2))
    after_each = list(digits.quantize.accumulate(embeddings))
    for scale, f_hat in enumerate(after_each):
        assert torch.equal(digits.f_hat(embeddings[:, : DIGITS.layout.starts[scale + 1]]), f_hat)
    assert torch.equal(digits.decode(embeddings), digits.decode_f_hat(after_each[-1]))


@pytest.mark.parametrize("length", [0, 4, 31])
def test_refuses_embeddings_that_end_inside_a_scale(digits: VarTokenizer, length: int) -> None:
    with pytest.raises(ValueError, match=rf"^{length} embeddings are no whole number of scales"):
        digits.f_hat(torch.zeros(1, length, 4).double())


@torch.no_grad()
def test_decodes_without_the_encoding_modules(digits: VarTokenizer) -> None:
    embeddings = torch.randn(1, 30, 4).double()
    images, state = digits.decode(embeddings), digits.decoder_state()
    bare = VarTokenizer(DIGITS).double().decoder_only()
    bare.load_state_dict(state)
    assert torch.equal(bare.decode(embeddings), images)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near(digits: VarTokenizer, dtype: torch.dtype) -> None:
    embeddings = digits.embed(random_tokens(2))
    expected = digits.f_hat(embeddings)
    result = digits.to(dtype).f_hat(embeddings.to(dtype))
    assert result.dtype == dtype
    assert (result.double() - expected).norm() / expected.norm() < 0.01


def test_refuses_a_latent_map_that_is_not_the_last_scale() -> None:
    with pytest.raises(ValueError, match="image_size must be 256, the last scale times 16"):
        VarTokenizerConfig(image_size=512)
