"""Values too small for the normal numbers of fp32, which some processors compute slowly."""

from __future__ import annotations


def flush_denormals() -> None:
    """Let this thread, and threads that it starts from now on, compute 0 for such values.

    An Intel processor takes many times as long for an operation on values below 1.2e-38 in
    magnitude. Swin's attention has them, since its masked positions have weights of exp(-100), and
    an average of squared gradients can. Call this before PyTorch starts its threads.
    """
    import torch

    torch.set_flush_denormal(True)
