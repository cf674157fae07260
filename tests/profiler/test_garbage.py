"""When garbage is collected, and that both contexts leave the collector as they found it."""

from __future__ import annotations

import gc
import weakref

from profiler.training_step import gc_frozen, gc_paused


class Cycle:
    """An object that only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


def test_the_outermost_context_ends_the_exclusion() -> None:
    before = gc.get_freeze_count()
    gc.unfreeze()
    try:
        with gc_frozen():
            excluded = gc.get_freeze_count()
            assert excluded > 10_000  # what the imports made
            with gc_frozen():
                pass
            # objects that were freed meanwhile no longer count
            assert gc.get_freeze_count() > excluded // 2
        assert gc.get_freeze_count() == 0
    finally:
        if before:
            gc.freeze()


def test_garbage_is_collected_before_the_first_step_whoever_excluded_the_imports() -> None:
    with gc_frozen():
        gone = weakref.ref(Cycle())
        assert gone() is not None
        with gc_frozen():
            assert gone() is None


def test_no_garbage_is_collected_in_a_pause() -> None:
    assert gc.isenabled()
    with gc_paused():
        with gc_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
