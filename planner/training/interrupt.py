"""Ctrl-C during training: the first one ends after the step under way, the second at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class Interrupt:
    """Remembers that somebody pressed Ctrl-C; the second time it goes through at once."""

    def __init__(self, tell: Callable[[], None] | None = None) -> None:
        self.asked = False
        self._tell = tell

    def __call__(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._tell is not None:
            self._tell()
