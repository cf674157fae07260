"""The end of processes: signals that ask for it, and children that end with their parent.

    Terminated           raised in the main thread by SIGTERM and SIGHUP
    termination_raises   installs these handlers
    end_with_parent      called in a child: the kernel kills it when its parent ends

SIGKILL gives a process no chance to end its children. Linux therefore lets a child name a signal
that it receives at its parent's death (PR_SET_PDEATHSIG, prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

TERMINATION_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal.

    It is a ``KeyboardInterrupt``, because the program stops in the same way as after Ctrl-C.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """Return 128 + the number of the signal, as shells report it; 130 for Ctrl-C."""
    number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
    return 128 + number


def raise_terminated(number: int, _: object) -> NoReturn:
    """Raise ``Terminated``; a signal handler."""
    raise Terminated(number)


@contextmanager
def termination_raises() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise ``Terminated`` in the main thread.

    Another handler stays, and so does an ignored signal (``nohup``).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [s for s in TERMINATION_SIGNALS if signal.getsignal(s) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, raise_terminated)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def end_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends. Outside Linux nothing happens.

    Limitation: the kernel sends the signal when the thread that started this process ends. The
    callers wait in that thread until the child has ended.

    Args:
        parent_pid: process number of the parent.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent ended before the call
        os._exit(1)
