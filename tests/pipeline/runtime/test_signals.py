"""One signal asks, a second Ctrl-C insists; the exit code tells which it was."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.runtime.signals import StoppedBySignal, stopping
from shards.core.errors import OtherStopped, OutOfTime, Stopped


def a_phase_that_is_sent(*numbers: signal.Signals) -> None:
    with stopping() as should_stop:
        assert not should_stop()
        for number in numbers:
            os.kill(os.getpid(), number)
        assert should_stop()
        raise Stopped("3 steps are kept")


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)]
)
def test_a_signal_lets_the_step_end(
    number: signal.Signals, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StoppedBySignal, match="3 steps are kept") as stopped:
        a_phase_that_is_sent(number)
    assert stopped.value.exit_code == exit_code
    assert "stopping after this step; once more to stop at once" in capsys.readouterr().err


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt):
        a_phase_that_is_sent(signal.SIGTERM, signal.SIGINT)


def test_a_second_termination_still_waits_and_the_first_signal_gives_the_exit_code() -> None:
    with pytest.raises(StoppedBySignal) as stopped:
        a_phase_that_is_sent(signal.SIGINT, signal.SIGTERM)
    assert stopped.value.exit_code == 130


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with stopping():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.parametrize("kind", [OutOfTime, OtherStopped])
def test_the_end_of_the_time_and_another_process_s_stop_end_as_a_termination(kind: type[Stopped]) -> None:
    with pytest.raises(StoppedBySignal, match="3 steps are kept") as stopped, stopping():
        raise kind("3 steps are kept")
    assert stopped.value.exit_code == 143
