"""A sandbox without a process, for tests of what is run and not of the process it runs in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from profiler.running.messages import decode, encode


def run_in_this_process(
    function: Callable[[Any, Any], Any], request: Any, result: type, **options: Any
) -> Any:
    """Call a function as a sandbox does, its messages encoded and decoded.

    Limitations: no memory cap holds and no time limit; errors are raised as they are.
    """
    on_progress = options.get("on_progress") or (lambda activity, fraction: None)
    given = decode(encode(request), type(request))
    return decode(encode(function(given, on_progress)), result)
