"""The VAR student: dependencies of each output, and initialisation from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from distill.student.var import VarStudent
from generate_pairs.teachers.var.teacher import VarConfig, VarTeacher, VarTransformer
from generate_pairs.teachers.var.tokenizer import VarTokenizer, VarTokenizerConfig

pytestmark = pytest.mark.quick

SMALL = VarConfig(width=32, depth=2, num_heads=2, vocab_size=24, codebook_dim=4, scales=(1, 2, 3, 4), num_classes=5)
LAYOUT = SMALL.layout


@pytest.fixture
def student() -> VarStudent:
    """A float64 student with weights so large that every part affects the output."""
    torch.manual_seed(0)
    student = VarStudent(SMALL)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return student.double().eval()


@pytest.fixture
def teacher() -> VarTeacher:
    torch.manual_seed(1)
    tokenizer_config = VarTokenizerConfig(
        24, 4, ch=32, ch_mult=(1, 2), num_res_blocks=1, scales=SMALL.scales, image_size=8
    )
    teacher = VarTeacher(VarTransformer(SMALL), VarTokenizer(tokenizer_config))
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher


@torch.no_grad()
def test_an_output_depends_on_earlier_scales_and_its_own_input_only(student: VarStudent) -> None:
    x, data_tokens, labels = torch.randn(1, 30, 4).double(), torch.tensor([5]), torch.tensor([3])
    outputs = student(x, data_tokens, labels)
    step_of_token = torch.tensor(LAYOUT.step_of_token)
    for token in range(LAYOUT.num_tokens):
        changed = x.clone()
        changed[0, token] += 1.0
        reached = step_of_token > step_of_token[token]
        reached[token] = True
        for before, after in zip(outputs, student(changed, data_tokens, labels), strict=True):
            moved = (after - before).abs().amax(-1)[0]
            assert torch.equal(moved > 1e-9, reached)
            assert (moved[~reached] == 0).all()


@torch.no_grad()
def test_an_output_depends_on_the_class_and_on_what_is_data(student: VarStudent) -> None:
    x = torch.randn(1, 30, 4).double().expand(3, -1, -1)
    _, embeddings = student(x, torch.tensor([0, 5, 0]), torch.tensor([3, 3, 2]))
    moved = (embeddings[1:] - embeddings[0]).abs().amax(-1) > 1e-9
    assert moved.all(), "every position depends on the condition and the first five tokens, or is one of them"


@torch.no_grad()
def test_rows_do_not_depend_on_the_rest_of_the_batch(student: VarStudent) -> None:
    x, data_tokens, labels = torch.randn(3, 30, 4).double(), torch.tensor([0, 5, 30]), torch.tensor([2, 0, 4])
    together = student(x, data_tokens, labels)
    alone = student(x[1:2], data_tokens[1:2], labels[1:2])
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[1:2], expected, rtol=0, atol=1e-12)


def test_every_parameter_learns(student: VarStudent) -> None:
    logits, embeddings = student(torch.randn(2, 30, 4).double(), torch.tensor([0, 5]), torch.tensor([2, 0]))
    (logits.logsumexp(-1).sum() + embeddings.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())


@pytest.mark.parametrize("shared_adaln", [True, False])
def test_initialisation_copies_the_shared_weights(teacher: VarTeacher, shared_adaln: bool) -> None:
    config = replace(SMALL, shared_adaln=shared_adaln)
    torch.manual_seed(2)
    teacher = VarTeacher(VarTransformer(config), teacher.tokenizer)
    student = VarStudent(config).double()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    student.initialise_from_teacher(teacher)
    theirs = {name: tensor.double() for name, tensor in teacher.transformer.state_dict().items()}
    for name, tensor in student.state_dict().items():
        if name == "pos_1LC":
            # The condition takes the teacher's first position; the first scale keeps its fresh values.
            old = theirs[name]
            expected = torch.cat([old[:, :1], before[name][:, 1:2], old[:, 1:]], dim=1)
        elif name == "lvl_embed.weight":
            expected = torch.cat([theirs[name][:1], before[name][1:2], theirs[name][1:]])
        else:
            expected = theirs.get(name, before[name])
        assert torch.equal(tensor, expected), name
    own = ("n_d_embed.", "layerwise_n_d_embed.", "final_layer_conti.")
    assert {name for name in before if name not in theirs} == {name for name in before if name.startswith(own)}


def test_initialisation_differs_from_the_official_one_in_two_rows(
    teacher: VarTeacher, golden_table: Callable[[str], Any]
) -> None:
    """Class row 1 is copied and level row 1 is fresh; the official code confuses the two."""
    measured = golden_table("init_with_teacher_var_dd")["map"]
    relation = {entry["student"]: entry for entry in measured}
    student = VarStudent(SMALL)
    student.initialise_from_teacher(teacher)
    ours, theirs = student.state_dict(), teacher.transformer.state_dict()
    compared = 0
    for name in ours.keys() & relation.keys() & theirs.keys():
        entry = relation[name]
        if entry["relation"] == "equal":
            assert torch.equal(ours[name], theirs[name]), name
        else:
            sources = entry["student_slice_comes_from_teacher_slice"][: ours[name].shape[entry["axis"]]]
            for row, source in enumerate(sources):
                if isinstance(source, int):
                    mine, copied = (
                        ours[name].select(entry["axis"], row),
                        theirs[name].select(entry["axis"], source),
                    )
                    assert torch.equal(mine, copied), (name, row)
        compared += 1
    assert compared == len(theirs)
    assert torch.equal(student.class_emb.weight, teacher.transformer.class_emb.weight)


def test_a_new_student_has_logits_near_zero() -> None:
    torch.manual_seed(0)
    logits, _ = VarStudent(SMALL)(torch.randn(2, 30, 4), torch.tensor([0, 5]), torch.tensor([2, 0]))
    assert logits.abs().max() < 0.1


@torch.no_grad()
def test_runs_under_autocast(student: VarStudent) -> None:
    x, data_tokens, labels = torch.randn(2, 30, 4), torch.tensor([0, 5]), torch.tensor([2, 0])
    student.float()
    exact = student(x, data_tokens, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = student(x, data_tokens, labels)
    for ours, expected in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("changes", [{"width": 64}, {"depth": 1}, {"scales": (1, 2, 4)}])
def test_refuses_a_teacher_of_another_shape(teacher: VarTeacher, changes: dict) -> None:
    with pytest.raises(ValueError, match="the teacher"):
        VarStudent(replace(SMALL, **changes)).initialise_from_teacher(teacher)
