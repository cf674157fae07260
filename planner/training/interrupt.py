"""Ctrl-C during training: the first one waits for the current step, the second one does not.

SIGTERM and SIGHUP are handled in the same way, so that a batch system that ends a job keeps its
last step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from profiler.running.process_end import TERMINATION_SIGNALS, Terminated, raise_terminated


class InterruptFlag:
    """Signal handler that remembers a first signal and raises at a second one.

    Args:
        on_first: called in the handler at the first signal.

    Attributes:
        is_set: whether a signal was received.
    """

    def __init__(self, on_first: Callable[[], None] | None = None) -> None:
        self.is_set = False
        self._number = int(signal.SIGINT)
        self._on_first = on_first

    def __call__(self, number: int = signal.SIGINT, *_: object) -> None:
        """Set the flag; raise ``KeyboardInterrupt`` if it was set before."""
        self._number = number
        if self.is_set:
            raise self.interrupt()
        self.is_set = True
        if self._on_first is not None:
            self._on_first()

    def interrupt(self) -> KeyboardInterrupt:
        """Return the exception that stands for the last signal."""
        is_ctrl_c = self._number == signal.SIGINT
        return KeyboardInterrupt() if is_ctrl_c else Terminated(self._number)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals by this flag; only the main thread may install a handler.

        Of SIGTERM and SIGHUP, only the default handler and the command line's are replaced.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {signal.SIGINT: signal.signal(signal.SIGINT, self)}
        for number in TERMINATION_SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, raise_terminated):
                previous[number] = signal.signal(number, self)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
