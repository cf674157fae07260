"""Import of modules that import bitsandbytes, without initialising CUDA.

bitsandbytes reads the compute capability when it is imported, and peft imports bitsandbytes. The
reading initialises CUDA in the process. Consequences without this module:

- PyTorch reads the options of its allocator then, so options that are set later have no effect.
- A process that has initialised CUDA cannot be forked, so replays do not run in parallel.

Here the compute capability is answered by NVML during the import. bitsandbytes 0.50 only prints it
in its diagnostics; the library that it loads depends on PyTorch's CUDA version.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from importlib import import_module
from types import ModuleType
from typing import Any

from profiler.device_rules.caching_allocator import configure
from profiler.errors import DeviceError


def import_quantised(name: str) -> ModuleType:
    """Import a module that imports bitsandbytes, itself or through peft.

    The options of PyTorch's allocator are set before (``configure``).
    """
    # bitsandbytes warns on import that a CPU inference kernel cannot be downloaded. No method here
    # calls that kernel.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    configure(os.environ)
    if "bitsandbytes" in sys.modules:
        return import_module(name)
    with _capability_from_nvml(), _compiled_when_called():
        return import_module(name)


@contextmanager
def _compiled_when_called() -> Iterator[None]:
    """Let ``torch.compile`` compile at the first call of its result.

    bitsandbytes compiles four functions of its fallback for devices without kernels when it is
    imported. That imports the compiler, which takes a third of the time of importing peft.
    """
    import torch

    compile_now: Any = torch.compile

    def compile_later(function: Any = None, **options: Any) -> Any:
        if function is None:
            return partial(compile_later, **options)
        compiled = cache(lambda: compile_now(function, **options))

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return call

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now


@contextmanager
def _capability_from_nvml() -> Iterator[None]:
    import torch

    from profiler.devices.nvml import open_gpu

    if torch.cuda.is_initialized() or not torch.cuda.is_available():
        yield
        return
    try:
        capability = open_gpu().spec.compute_capability
    except DeviceError:  # neither NVML nor PyTorch can use the GPU
        yield
        return
    asked = torch.cuda.get_device_capability

    def answer(device: Any = None) -> Any:
        return asked(device) if capability is None else capability

    torch.cuda.get_device_capability = answer
    try:
        yield
    finally:
        torch.cuda.get_device_capability = asked
