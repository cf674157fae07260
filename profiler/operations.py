"""Properties of PyTorch operators: kind, arguments read, and whether they launch a kernel."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

Operation: TypeAlias = OpOverload
"""An operator that PyTorch dispatched, such as ``aten::add.Tensor``."""

Arguments: TypeAlias = tuple[Any, ...]
"""Arguments of an operator by position. The operator's schema gives the type of each."""

_ALLOCATIONS = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
}


def only_allocates(func: Operation) -> bool:
    """Return whether an operator allocates a tensor and writes nothing to it."""
    return func._schema.name in _ALLOCATIONS


def only_views(func: Operation) -> bool:
    """Return whether all results of an operator alias an input and it writes to none."""
    # _unsafe_view is a view too, but its schema does not declare the alias.
    if func is torch.ops.aten._unsafe_view.default:
        return True
    returns = func._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


def read_arguments(func: Operation, args: tuple[object, ...]) -> tuple[object, ...]:
    """Return the arguments that an operator reads.

    The scratch of a selective scan is left out: its size does not depend on the batch, and the
    loops access only a part.
    """
    if func.namespace != "budgetplan":
        return args
    named = zip(func._schema.arguments, args, strict=False)
    return tuple(arg for declared, arg in named if declared.name != "workspace")


def bytes_in(values: object) -> int:
    """Return the bytes of all tensors in nested containers."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, Tensor))


def operation_kind(func: Operation, args: Arguments) -> str:
    """Return the kind of an operation, for rates measured by kind (``OperationRecord.kind``).

    It is the operator's name; convolutions are distinguished by depthwise and pointwise, and batch
    normalisation by whether it uses given statistics.
    """
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
