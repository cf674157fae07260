"""Scales that are initialised to zero and that a method freezes.

ResNets and their kin initialise the last norm of every residual branch with the scale zero
(``zero_init_last``), so that training starts from the identity. If a method freezes the scale, a
branch of random weights stays zero, and no gradient reaches the parameters inside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from profiler.models import backbones
from profiler.models.methods.base import backbone_of

if TYPE_CHECKING:
    from torch import nn

    from profiler.workload import Workload


def zero_scale_note(model: nn.Module, workload: Workload) -> str | None:
    """Return a note on the zero scales that a workload freezes; None without any.

    Args:
        model: the model that the method returned, with random weights or on ``meta``.
        workload: its workload.
    """
    if workload.method in {"full", "head"}:
        return None
    if next(model.parameters()).is_meta:
        names = zeroed_scales(workload.model, workload.image_size)
        return _note(model, names)
    names = tuple(
        name
        for name, parameter in backbone_of(model).named_parameters()
        if _is_scale(name, parameter) and not bool(parameter.detach().any())
    )
    return _note(model, names)


def _note(model: nn.Module, names: Iterable[str]) -> str | None:
    learns = {name: p.requires_grad for name, p in backbone_of(model).named_parameters()}
    frozen = [name for name in names if learns.get(name) is False]
    if not frozen:
        return None
    return (
        f"with random weights, {len(frozen)} residual branches stay zero: their last scale "
        f"({frozen[0]}) is initialised to zero and frozen, so the parameters inside them do "
        "not learn; use pretrained weights or full"
    )


def _is_scale(name: str, parameter: Any) -> bool:
    return name.endswith(".weight") and parameter.dim() == 1 and parameter.is_floating_point()


@cache
def zeroed_scales(model: str, image_size: int) -> tuple[str, ...]:
    """Return the scales that the constructor of a backbone fills with zeros.

    On ``meta`` no tensor has values, so the fills themselves are observed.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    last_fill: dict[int, bool] = {}

    class Fills(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.zero_.default:
                last_fill[id(args[0])] = True
            elif func is torch.ops.aten.fill_.Scalar:
                last_fill[id(args[0])] = args[1] == 0
            return func(*args, **(kwargs or {}))

    with Fills():  # type: ignore[no-untyped-call]
        built = backbones.build_on_meta(model, image_size=image_size)
    return tuple(
        name
        for name, parameter in built.named_parameters()
        if _is_scale(name, parameter) and last_fill.get(id(parameter))
    )
