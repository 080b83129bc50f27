from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from generate_pairs.compute.packed_linear import MIN_WEIGHTS, PackedLinear, Projection, pack_linears
from generate_pairs.teachers.base import Teacher
from generate_pairs.teachers.llamagen.teacher import LlamaGenConfig, LlamaGenTeacher, LlamaGenTransformer
from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizer, LlamaGenTokenizerConfig
from generate_pairs.teachers.var.teacher import VarConfig, VarTeacher, VarTransformer
from generate_pairs.teachers.var.tokenizer import VarTokenizer, VarTokenizerConfig

WIDTH = 768
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)


def llamagen() -> LlamaGenTeacher:
    transformer = LlamaGenTransformer(
        LlamaGenConfig(WIDTH, depth=2, num_heads=4, vocab_size=512, num_tokens=4, num_classes=3)
    )
    tokenizer = LlamaGenTokenizer(
        LlamaGenTokenizerConfig(512, z_channels=32, ch=32, ch_mult=(1,), num_res_blocks=1)
    )
    return LlamaGenTeacher(transformer, tokenizer)


def var() -> VarTeacher:
    scales = (1, 2)
    transformer = VarTransformer(
        VarConfig(
            depth=2, width=WIDTH, num_heads=4, vocab_size=512, codebook_dim=32, scales=scales, num_classes=3
        )
    )
    tokenizer = VarTokenizer(VarTokenizerConfig(512, 32, 32, scales=scales, image_size=32))
    return VarTeacher(transformer, tokenizer)


def teacher_of(family: str) -> Teacher:
    torch.manual_seed(0)
    teacher = {"llamagen": llamagen, "var": var}[family]().eval()
    for parameter in teacher.transformer.parameters():
        nn.init.normal_(parameter, std=0.05)
    return teacher


def all_logits(teacher: Teacher) -> Tensor:
    """Guided logits of every position, given tokens that are drawn beforehand."""
    layout, labels_B = teacher.layout, torch.tensor([0, 2])
    tokens_BL = torch.randint(512, (2, layout.num_tokens), generator=torch.Generator().manual_seed(1))
    decoding, steps = teacher.start(labels_B, 2.0), []
    for step in range(layout.num_steps):
        steps.append(decoding.logits())
        decoding.append(tokens_BL[:, layout.span(step)])
    return torch.cat(steps, dim=1)


@needs_onednn
@pytest.mark.parametrize("family", ["llamagen", "var"])
def test_a_packed_teacher_gives_the_same_logits(family: str) -> None:
    exact = all_logits(teacher_of(family).double())
    plain, packed = teacher_of(family), teacher_of(family)
    packed.pack()
    found = all_logits(packed)
    large = [layer for layer in plain.modules() if isinstance(layer, nn.Linear)]
    large = [layer for layer in large if layer.weight.numel() >= MIN_WEIGHTS]
    assert sum(isinstance(layer, PackedLinear) for layer in packed.modules()) == len(large) > 4
    rounding = (all_logits(plain) - exact).abs().max()
    assert (found - exact).abs().max() < 4 * rounding < 1e-4 * exact.abs().max()


@needs_onednn
def test_a_bias_may_come_with_the_layer_or_with_the_input() -> None:
    torch.manual_seed(0)
    x_ND, bias_E = torch.randn(3, 5, WIDTH), torch.randn(WIDTH)
    layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), Projection(WIDTH, WIDTH)).eval()
    with_bias, projection = layers
    wanted = with_bias(x_ND), projection(x_ND, bias_E), projection(x_ND)
    assert pack_linears(layers) == 2
    found = layers[0](x_ND), layers[1](x_ND, bias_E), layers[1](x_ND)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Linear(WIDTH, MIN_WEIGHTS // WIDTH), "small"),
        (nn.Linear(WIDTH, WIDTH, dtype=torch.float64), "of another precision"),
        (nn.Linear(WIDTH, WIDTH, device="meta"), "not on a CPU"),
    ],
)
def test_what_does_not_gain_stays_as_it_is(layer: nn.Linear, why: str) -> None:
    network = nn.Sequential(layer).eval()
    assert pack_linears(network) == 0, why
    assert network[0] is layer


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert pack_linears(nn.Sequential(nn.Linear(WIDTH, WIDTH)).eval()) == 0


def test_a_network_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        pack_linears(nn.Sequential(nn.Linear(WIDTH, WIDTH)).train())
