"""The first signal requests a stop, a second Ctrl-C stops at once; the exit code depends on the first signal."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.runtime.signals import StoppedBySignal, stopping
from shards.core.errors import OtherStopped, OutOfTime, Stopped

pytestmark = pytest.mark.quick


def phase_receiving(*numbers: signal.Signals) -> None:
    with stopping() as should_stop:
        assert not should_stop()
        for number in numbers:
            os.kill(os.getpid(), number)
        assert should_stop()
        raise Stopped("3 steps are kept")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_stops_after_the_current_step(
    number: signal.Signals, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StoppedBySignal, match="3 steps are kept") as stopped:
        phase_receiving(number)
    assert stopped.value.exit_code == exit_code
    assert "stopping after this step; press Ctrl-C again to stop at once" in capsys.readouterr().err


def test_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        phase_receiving(signal.SIGTERM, signal.SIGINT)


def test_a_second_sigterm_waits_and_the_first_signal_sets_the_exit_code() -> None:
    with pytest.raises(StoppedBySignal) as stopped:
        phase_receiving(signal.SIGINT, signal.SIGTERM)
    assert stopped.value.exit_code == 130


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with stopping():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.parametrize("kind", [OutOfTime, OtherStopped])
def test_the_time_limit_and_a_stop_of_another_process_exit_like_sigterm(kind: type[Stopped]) -> None:
    with pytest.raises(StoppedBySignal, match="3 steps are kept") as stopped, stopping():
        raise kind("3 steps are kept")
    assert stopped.value.exit_code == 143
