"""Seconds per image: medians over turns, with a clock that the test controls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distill.evaluation import timing

ROUNDS = 20


@pytest.fixture(autouse=True)
def rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual number of rounds; other tests use fewer."""
    monkeypatch.setattr(timing, "ROUNDS", ROUNDS)


def test_each_function_gets_its_own_median_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def takes(seconds: float):
        def make(batch_size: int) -> None:
            nonlocal now
            now += seconds * batch_size

        return make

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    measured = timing.seconds_per_image({"slow": takes(0.5), "fast": takes(0.002)}, 8)
    assert measured == {"slow": pytest.approx(0.5), "fast": pytest.approx(0.002)}


def test_a_function_that_used_its_time_gets_no_more_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    turns = {"slow": 0, "fast": 0}

    def takes(name: str, seconds: float):
        def make(batch_size: int) -> None:
            nonlocal now
            now += seconds
            turns[name] += 1

        return make

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    measured = timing.seconds_per_image({"slow": takes("slow", 60.0), "fast": takes("fast", 0.125)}, 1)
    assert measured == {"slow": pytest.approx(60.0), "fast": pytest.approx(0.125)}
    assert turns == {"slow": 1 + timing.MIN_ROUNDS, "fast": 1 + ROUNDS}


def test_functions_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(timing, "SECONDS_A_TURN", 0.0)
    timing.seconds_per_image({"a": lambda _: order.append("a"), "b": lambda _: order.append("b")}, 1)
    assert order == ["a", "b"] * (1 + timing.ROUNDS)
