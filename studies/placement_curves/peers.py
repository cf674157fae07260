"""Peers that bring their own decisions: timm's checkpointing, and torch.compile's budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType

import torch
from torch._functorch import config as compile_config

from profiler.models.methods.base import backbone_of

COMPILED = "torch.compile budget"
TIMM = "timm set_grad_checkpointing"
PEERS = (TIMM, *(f"{COMPILED}: {share:.0%}" for share in (1.0, 0.7, 0.4, 0.1)))
PLAIN_COMPILED = f"{COMPILED}: 100%"
"""Keeps everything: the budgets' times are held against it."""

Following = Callable[[torch.nn.Module], AbstractContextManager[None]]


@contextmanager
def timm_checkpointing(model: torch.nn.Module) -> Iterator[None]:
    """Switch timm's own checkpointing on."""
    backbone_of(model).set_grad_checkpointing(True)
    try:
        yield
    finally:
        backbone_of(model).set_grad_checkpointing(False)


class CompiledPeer:
    """torch.compile with Inductor under an ``activation_memory_budget``.

    Dynamo remembers what it compiled by the code object it compiled, so each budget has its own.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.compiled: Callable[..., torch.Tensor] | None = None

    @contextmanager
    def __call__(self, model: torch.nn.Module) -> Iterator[None]:
        """Put it on, and take it off again."""
        if self.compiled is None:
            eager = model.forward

            def forward(images: torch.Tensor) -> torch.Tensor:
                return eager(images)

            own = FunctionType(
                forward.__code__.replace(co_name=f"forward_within_{self.share:.2f}"),
                globals(),
                closure=forward.__closure__,
            )
            self.compiled = torch.compile(own, fullgraph=True)
        model.forward = self.compiled
        try:
            with compile_config.patch(activation_memory_budget=self.share):
                yield
        finally:
            del model.forward


def peer_named(name: str) -> Following:
    """Return one of ``PEERS``."""
    if name == TIMM:
        return timm_checkpointing
    return CompiledPeer(float(name.partition(": ")[2].rstrip("%")) / 100)
