"""A first signal waits for the step, a second one does not; handlers of others stay."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from planner.training.interrupt import InterruptFlag
from profiler.running.process_end import Terminated, termination_raises


@pytest.fixture
def no_signal_is_ignored() -> Iterator[None]:
    """Handle SIGHUP, which nohup ignores, and SIGINT, which a shell's background job ignores."""
    before = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("no_signal_is_ignored")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_waits_and_the_second_raises(number: signal.Signals) -> None:
    seen: list[str] = []
    with termination_raises():  # as the command line does
        before = signal.getsignal(number)
        flag = InterruptFlag(lambda: seen.append("waits"))
        with flag.installed():
            signal.raise_signal(number)
            assert flag.is_set and seen == ["waits"]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert signal.getsignal(number) is before
    interrupt = flag.interrupt()
    if number == signal.SIGINT:
        assert not isinstance(interrupt, Terminated)
    else:
        assert isinstance(interrupt, Terminated) and interrupt.number == number


def test_a_handler_of_the_calling_program_stays() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        flag = InterruptFlag()
        with flag.installed():
            signal.raise_signal(signal.SIGTERM)
        assert not flag.is_set and seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
