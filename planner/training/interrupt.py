"""Ctrl-C during training: the first one waits for the current step, the second one does not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class InterruptFlag:
    """Signal handler that remembers a first Ctrl-C and raises at a second one.

    Args:
        on_first: called in the handler at the first Ctrl-C.

    Attributes:
        is_set: whether Ctrl-C was pressed.
    """

    def __init__(self, on_first: Callable[[], None] | None = None) -> None:
        self.is_set = False
        self._on_first = on_first

    def __call__(self, *_: object) -> None:
        """Set the flag; raise ``KeyboardInterrupt`` if it was set before."""
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        if self._on_first is not None:
            self._on_first()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT by this flag; only the main thread may install a handler."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
