"""A child process that hangs, in place of any other."""

from __future__ import annotations

import time
from collections.abc import Callable

from profiler.running.messages import Message


def hang(request: Message, progress: Callable[[str, float], None]) -> Message:
    progress("hanging", 0.5)
    time.sleep(3600)
    return request
