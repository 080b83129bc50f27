"""The LlamaGen student: dependencies of each output, and initialisation from a teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill.student.llamagen import LlamaGenStudent, affine_fit
from generate_pairs.teachers.base import TextCondition
from generate_pairs.teachers.llamagen.teacher import LlamaGenTeacher
from generate_pairs.teachers.llamagen.tokenizer import LlamaGenTokenizer, LlamaGenTokenizerConfig
from generate_pairs.teachers.llamagen.transformer import LlamaGenConfig, LlamaGenTransformer

pytestmark = pytest.mark.quick

SMALL = LlamaGenConfig(width=32, depth=2, num_heads=2, vocab_size=24, num_tokens=16, num_classes=4, ffn_multiple_of=32)


@pytest.fixture
def student() -> LlamaGenStudent:
    torch.manual_seed(0)
    student = LlamaGenStudent(SMALL, codebook_dim=4).double().eval()
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return student


@torch.no_grad()
def test_an_output_depends_on_its_own_and_earlier_inputs(student: LlamaGenStudent) -> None:
    x, labels, data_tokens = torch.randn(1, 16, 4).double(), torch.tensor([2]), torch.tensor([0])
    changed = x.clone()
    changed[0, 6] += 1
    for before, after in zip(student(x, data_tokens, labels), student(changed, data_tokens, labels), strict=True):
        assert (before != after).any(-1)[0].tolist() == [False] * 6 + [True] * 10


@torch.no_grad()
def test_the_number_of_data_tokens_marks_each_position(student: LlamaGenStudent) -> None:
    x, labels = torch.randn(1, 16, 4).double(), torch.tensor([2])
    for num_data in (0, 5, 15):
        fewer, more = (student(x, torch.tensor([n]), labels)[0] for n in (num_data, num_data + 1))
        assert (fewer != more).any(-1)[0].tolist() == [False] * num_data + [True] * (16 - num_data)


@torch.no_grad()
def test_rows_do_not_depend_on_the_rest_of_the_batch(student: LlamaGenStudent) -> None:
    x, data_tokens, labels = torch.randn(3, 16, 4).double(), torch.tensor([0, 7, 16]), torch.tensor([2, 0, 4])
    together = student(x, data_tokens, labels)
    alone = student(x[1:2], data_tokens[1:2], labels[1:2])
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[1:2], expected, rtol=0, atol=1e-12)


def test_every_parameter_learns_in_training(student: LlamaGenStudent) -> None:
    logits, embeddings = student(torch.randn(2, 16, 4).double(), torch.tensor([0, 7]), torch.tensor([2, 0]))
    (logits.logsumexp(-1).sum() + embeddings.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())


@pytest.fixture
def teacher() -> LlamaGenTeacher:
    torch.manual_seed(1)
    tokenizer_config = LlamaGenTokenizerConfig(24, 4, z_channels=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, image_size=8)
    teacher = LlamaGenTeacher(LlamaGenTransformer(SMALL), LlamaGenTokenizer(tokenizer_config))
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher


def test_initialisation_copies_the_shared_weights(student: LlamaGenStudent, teacher: LlamaGenTeacher) -> None:
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    student.initialise_from_teacher(teacher, least_squares=False)
    theirs = teacher.transformer.state_dict()
    own = ("tok_embeddings.", "n_d_embed.", "final_layer_conti.")
    for name, tensor in student.state_dict().items():
        expected = before[name] if name.startswith(own) else theirs[name].double()
        assert torch.equal(tensor, expected), name


@torch.no_grad()
def test_token_embeddings_solve_the_ridge_regression_on_the_codebook(
    student: LlamaGenStudent, teacher: LlamaGenTeacher
) -> None:
    student.initialise_from_teacher(teacher)
    rows = teacher.codebook_VC.double()
    residual = student.tok_embeddings(rows) - teacher.transformer.tok_embeddings.weight.double()
    centred = rows - rows.mean(0)
    # The normal equations: the gradient of the fit equals that of the ridge, and the mean is exact.
    ridge_gradient = 0.01 * centred.square().mean() * student.tok_embeddings.weight.T
    torch.testing.assert_close(-centred.T @ residual / len(rows), ridge_gradient, rtol=0, atol=1e-8)
    torch.testing.assert_close(residual.mean(0), torch.zeros(32).double(), rtol=0, atol=1e-7)


def test_without_a_ridge_an_affine_map_is_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, weight, bias = (torch.randn(n, generator=generator).double() for n in ((24, 4), (4, 32), (32,)))
    fitted_weight, fitted_bias = affine_fit(rows, rows @ weight + bias, ridge=0.0)
    torch.testing.assert_close(fitted_weight, weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(fitted_bias, bias, rtol=0, atol=1e-12)


def test_weights_stay_small_for_a_codebook_close_to_a_plane() -> None:
    """Noise also varies perpendicular to the plane; plain least squares would amplify it there."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(64, 3, generator=generator).double() * torch.tensor([1.0, 1.0, 1e-3])
    outputs = 0.1 * torch.randn(64, 32, generator=generator).double()
    plain, _ = affine_fit(rows, outputs, ridge=0.0)
    ridged, _ = affine_fit(rows, outputs)
    assert plain[2].norm() > 10
    assert ridged.norm() < 0.2


def test_a_new_student_has_outputs_near_zero() -> None:
    torch.manual_seed(0)
    logits, embeddings = LlamaGenStudent(SMALL, codebook_dim=4)(
        torch.randn(2, 16, 4), torch.tensor([0, 7]), torch.tensor([2, 0])
    )
    assert torch.equal(logits, torch.zeros(2, 16, 24))
    assert embeddings.abs().max() < 1


def test_refuses_a_teacher_of_another_shape(teacher: LlamaGenTeacher) -> None:
    wider = LlamaGenStudent(replace(SMALL, width=64), codebook_dim=4)
    with pytest.raises(ValueError, match="the teacher's cls_embedding do not fit"):
        wider.initialise_from_teacher(teacher)


TEXT = replace(SMALL, condition="text", num_condition_tokens=6, caption_dim=5)


def text_student() -> LlamaGenStudent:
    """A text-conditional student with weights so large that every part affects the output."""
    torch.manual_seed(0)
    student = LlamaGenStudent(TEXT, codebook_dim=4).double().eval()
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)
    return student


@torch.no_grad()
def test_outputs_depend_on_a_caption_and_not_on_its_padding() -> None:
    student = text_student()
    x, data_tokens = torch.randn(2, SMALL.num_tokens, 4).double(), torch.tensor([0, 3])
    features = torch.randn(2, 6, 5).double()
    seen = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]).bool()

    def outputs(features: Tensor, seen: Tensor) -> Tensor:
        return torch.cat(student(x, data_tokens, TextCondition(features, seen)), dim=-1)

    expected = outputs(features, seen)
    changed = torch.where(seen[..., None], features, 7.0)
    assert torch.equal(outputs(changed, seen), expected)
    torch.testing.assert_close(outputs(features[:, 2:], seen[:, 2:]), expected, rtol=0, atol=1e-12)
    alone = torch.cat(student(x[1:], data_tokens[1:], TextCondition(features[1:, 3:], seen[1:, 3:])), dim=-1)
    torch.testing.assert_close(alone, expected[1:], rtol=0, atol=1e-12)
    for place in (2, 5):
        other = features.clone()
        other[0, place] += 0.1
        difference = (outputs(other, seen) - expected).abs().amax(dim=(1, 2))
        assert difference[0] > 1e-4
        assert difference[1] == 0


@torch.no_grad()
def test_a_position_depends_on_its_caption_and_the_noise_up_to_its_own() -> None:
    student = text_student()
    x, none = torch.randn(1, SMALL.num_tokens, 4).double(), torch.tensor([0])
    condition = TextCondition(torch.randn(1, 3, 5).double(), torch.ones(1, 3).bool())
    before = torch.cat(student(x, none, condition), dim=-1)
    x[:, 5] += 1.0
    moved = (torch.cat(student(x, none, condition), dim=-1) - before).abs().amax(dim=-1)[0]
    assert (moved[:5] == 0).all()
    assert (moved[5:] > 1e-6).all()


@torch.no_grad()
def test_initialisation_from_a_text_conditional_teacher() -> None:
    tokenizer = LlamaGenTokenizer(
        LlamaGenTokenizerConfig(SMALL.vocab_size, 4, z_channels=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, image_size=8)
    )
    teacher = LlamaGenTeacher(LlamaGenTransformer(TEXT), tokenizer)
    student = LlamaGenStudent(TEXT, codebook_dim=4)
    student.initialise_from_teacher(teacher)
    ours, theirs = student.state_dict(), teacher.transformer.state_dict()
    copied = [name for name in theirs if name != "tok_embeddings.weight"]
    assert {name.split(".")[0] for name in copied} == {"cls_embedding", "layers", "norm", "output"}
    assert all(torch.equal(ours[name], theirs[name]) for name in copied)
