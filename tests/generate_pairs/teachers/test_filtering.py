"""Temperature, top-k and top-p of both families, against arrays recorded from the official samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from generate_pairs.teachers.filtering import SamplingSettings, filter_llamagen, filter_var

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("var_sampling_a", filter_var),
        ("var_sampling_ties_a", filter_var),
        ("lg_sampling_a", filter_llamagen),
        ("lg_sampling_ties_a", filter_llamagen),
    ],
)
def test_official_samplers(golden: Callable[[str], Any], name: str, function: Callable[..., Tensor]) -> None:
    case = golden(name)
    logits = case.inputs["logits"].clone()
    probs = {f"probs_{i}": function(logits, *setting).exp() for i, setting in enumerate(case.spec["config"]["settings"])}
    case.check_all(probs)
    for output, got in probs.items():
        np.testing.assert_array_equal(got.numpy() > 0, case.expected[output] > 0)
    assert torch.equal(logits, case.inputs["logits"]), "the input must not change, as it does in the official code"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_normalised_float32_with_minus_infinity_where_removed(dtype):
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    for log_probs in (filter_var(logits, 10, 0.9), filter_llamagen(logits, 10, 0.9, 0.8)):
        assert log_probs.dtype == torch.float32
        torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(5), atol=1e-6, rtol=0)
        kept = (log_probs > -torch.inf).sum(dim=1)
        assert bool(((kept >= 1) & (kept <= 10)).all())


def test_settings_that_are_off_give_a_plain_softmax():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(1)) * 3
    for log_probs in (
        filter_var(logits, 0, 0.0),
        filter_var(logits, 0, 1.0),
        filter_var(logits, 1000, 1.0),
        filter_llamagen(logits, 0, 1.0, 1.0),
    ):
        assert torch.equal(log_probs, torch.log_softmax(logits, dim=1))


def test_the_families_cut_the_tail_from_opposite_ends():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert (filter_var(logits, 0, 0.7) > -torch.inf).tolist() == [[True, True, False]]
    assert (filter_llamagen(logits, 0, 0.45, 1.0) > -torch.inf).tolist() == [[True, False, False]]
    assert (filter_llamagen(logits, 0, 0.55, 1.0) > -torch.inf).tolist() == [[True, True, False]]


def test_settings_are_read_from_a_teachers_record():
    recorded = {"name": "small", "dtype": "float32", "guidance_scale": 2.0, "top_k": 5, "top_p": 0.9}
    assert SamplingSettings.of(recorded | {"temperature": 0.7}) == SamplingSettings(2.0, 5, 0.9, 0.7)
    with pytest.raises(KeyError, match="temperature"):
        SamplingSettings.of(recorded)


@pytest.mark.parametrize("wrong", [{"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 0.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingSettings(guidance_scale=1.0, **wrong)
