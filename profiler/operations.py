"""What an operation of PyTorch is: what it computes, what it reads, whether it does anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_ALLOCATIONS = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
}


def only_allocates(func: Any) -> bool:
    """True for operations that make a tensor and leave it as it came."""
    return func._schema.name in _ALLOCATIONS


def only_views(func: Any) -> bool:
    """True for operations whose results all alias an input without writing to it.

    ``_unsafe_view`` is one of them whose schema keeps quiet about it.
    """
    if func is torch.ops.aten._unsafe_view.default:
        return True
    returns = func._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


def read_arguments(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what an operation reads: a scan's scratch is as large for one image as for many."""
    if func.namespace != "budgetplan":
        return args
    named = zip(func._schema.arguments, args, strict=False)
    return tuple(arg for declared, arg in named if declared.name != "workspace")


def bytes_in(values: Any) -> int:
    """Return the bytes of all tensors among some values, nested as they may be."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


def operation_kind(func: Any, args: tuple[Any, ...]) -> str:
    """Return what an operation computes (``OperationRecord.kind``)."""
    name: str = func._schema.name
    if func._overloadpacket is torch.ops.aten.convolution:
        weight, groups = args[1], args[8]
    elif func._overloadpacket is torch.ops.aten.convolution_backward:
        weight, groups = args[2], args[9]
    elif func._overloadpacket is torch.ops.aten.native_batch_norm and not args[5]:
        return f"{name}, given statistics"
    else:
        return name
    if groups > 1:
        return f"{name}, depthwise"
    return f"{name}, pointwise" if weight.shape[2:].numel() == 1 else name
