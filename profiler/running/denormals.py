"""Values too small for the normal numbers of fp32, which some processors compute slowly.

An Intel processor takes many times as long for an operation on values below 1.2e-38 in magnitude.
Swin's attention has them, since its masked positions have weights of exp(-100), and an average of
squared gradients can. PyTorch can take them for 0. The setting is that of a thread, and threads
that it starts have it too: set it before PyTorch starts its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def flush_denormals() -> None:
    """Let this thread, and threads that it starts from now on, compute 0 for such values."""
    import torch

    torch.set_flush_denormal(True)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Let this thread compute 0 for such values within the context.

    Threads that PyTorch starts within the context keep the setting after it.
    """
    import torch

    value = torch.full((1,), 1e-41, dtype=torch.float32, device="cpu")
    were_flushed = not (value * 0.5).any()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(bool(were_flushed))
