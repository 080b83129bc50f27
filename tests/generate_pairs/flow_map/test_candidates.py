"""The first of the largest scores, and the possible tokens of a row."""

from __future__ import annotations

import pytest
import torch

from generate_pairs.flow_map.candidates import first_argmax, gather_support

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("width", [5, 512, 1024, 1000])
def test_first_argmax_takes_the_lowest_index_on_ties(width):
    scores = torch.randint(0, 3, (200, width), generator=torch.Generator().manual_seed(91)).float()
    scores[0] = -torch.inf
    expected = [row.tolist().index(max(row.tolist())) for row in scores]
    assert first_argmax(scores).tolist() == expected


def test_gather_support_keeps_the_order_of_the_codebook():
    log_p = torch.tensor([[-torch.inf, -1.0, -torch.inf, -2.0], [-3.0, -torch.inf, -torch.inf, -torch.inf]])
    support, log_p_of_support = gather_support(log_p, 3)
    assert support.tolist() == [[1, 3, 0], [0, 0, 0]]
    assert log_p_of_support.tolist() == [[-1.0, -2.0, -torch.inf], [-3.0, -torch.inf, -torch.inf]]
