"""Seconds per image: medians over turns, with a clock that the test controls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distill.evaluation import timing

pytestmark = pytest.mark.quick

ROUNDS = 20


@pytest.fixture(autouse=True)
def rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual number of rounds; other tests use fewer."""
    monkeypatch.setattr(timing, "ROUNDS", ROUNDS)


@pytest.mark.parametrize(
    ("slow", "fast", "batch_size"),
    [(0.5, 0.002, 8), (60.0, 0.125, 1)],
)
def test_each_function_gets_its_own_median_per_image_until_it_used_its_time(
    monkeypatch: pytest.MonkeyPatch, slow: float, fast: float, batch_size: int
) -> None:
    now, counts = 0.0, {"slow": 0, "fast": 0}

    def takes(name: str, seconds: float):
        def make(batch_size: int) -> None:
            nonlocal now
            now += seconds * batch_size
            counts[name] += 1

        return make

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    measured = timing.seconds_per_image({"slow": takes("slow", slow), "fast": takes("fast", fast)}, batch_size)
    assert measured == {"slow": pytest.approx(slow), "fast": pytest.approx(fast)}
    assert counts == {"slow": 1 + timing.MIN_ROUNDS, "fast": 1 + ROUNDS}


def test_functions_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "SECONDS_A_TURN", 0.0)
    timing.seconds_per_image({"a": lambda _: order.append("a"), "b": lambda _: order.append("b")}, 1)
    assert order == ["a", "b"] * (1 + timing.ROUNDS)
