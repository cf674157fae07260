"""The bias of a linear layer, which real tensors add in place and fake ones out of place.

If the input of a linear layer is not contiguous, PyTorch multiplies and then adds the bias. It adds
in place, unless the bias is a subclass of tensor, as a fake one is (``linear``,
aten/src/ATen/native/Linear.cpp). A replay marks these additions, and the recorder lets their result
live in the place of the product.
"""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor
from torch.library import Library

from profiler.operations import Arguments, Operation

_in_linear: ContextVar[bool] = ContextVar("in_linear", default=False)

_BIAS_SUM = torch.ops.aten.add.Tensor


def mark_linear(library: Library) -> None:
    """Mark the operations inside linear layers while a step is replayed."""
    linear = torch.ops.aten.linear.default
    composite = torch._C.DispatchKey.CompositeImplicitAutograd

    def marked(image: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        token = _in_linear.set(True)
        try:
            out: Tensor = linear._op_dk(composite, image, weight, bias)
        finally:
            _in_linear.reset(token)
        return out

    library.impl("linear", marked, "AutogradCPU")


def product_with_bias(func: Operation, args: Arguments) -> Tensor | None:
    """Return the product to which an operation adds a linear layer's bias; None for others."""
    if func is not _BIAS_SUM or not _in_linear.get() or not isinstance(args[0], Tensor):
        return None
    return args[0]
