"""Numbers of bytes as people write them."""

from __future__ import annotations

import pytest

from shards.core.units import format_bytes

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.0 kB"), (4_649, "4.6 kB"), (999_949, "999.9 kB")),
        *((999_950, "1.0 MB"), (64_700_000, "64.7 MB"), (9.2e9, "9.2 GB"), (1.65e12, "1.6 TB"), (1.2e15, "1,200.0 TB")),
    ],
)
def test_bytes_have_the_unit_that_leaves_one_to_three_digits(count: float, text: str) -> None:
    assert format_bytes(count) == text
