"""Fewer passes of the garbage collector in a process that imports PyTorch.

PyTorch, timm and peft make a million objects that stay. With Python's settings, a second of their
import and a second of the end of the process are passes over these objects that find nothing.
"""

from __future__ import annotations

import atexit
import gc


def collect_rarely() -> None:
    """Let the collector run rarely, and not at the end of the process."""
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)  # the passes at the end then have nothing to visit
