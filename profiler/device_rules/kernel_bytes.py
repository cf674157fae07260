"""Memory of kernels that a replay on fake CPU tensors does not show, on any device.

Pieces: `KernelBytes` (memory that an operation allocates and frees inside itself; implemented by
profiler/device_rules/cpu_kernels.py and cuda_scratch.py), `understated_results` (results whose real
storage is larger than the fake one).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from profiler.operations import Arguments, Operation

Blocks = tuple[int, ...]
"""Bytes of every block that an operation holds at its own peak."""


class BeforeResults(int):
    """Bytes of a block that an operation allocates before its results, such as an operand's copy.

    The order decides which free blocks the allocator gives to the results.
    """


class Earlier(int):
    """Bytes of a block that is freed before the operation allocates its last block."""


def bytes_inside(blocks: Blocks) -> int:
    """Return the bytes that blocks beside the results take at most."""
    return max(sum(blocks[:-1]), sum(b for b in blocks if not isinstance(b, Earlier)))


class KernelBytes(Protocol):
    """Memory inside operations on one device.

    Attributes:
        beside_results: True if the blocks are held in addition to the operation's results. False if
            they are everything that the operation holds at its peak, its results included as far
            as they exist by then.
    """

    beside_results: bool

    def inside(
        self,
        func: Operation,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        live_bytes: int,
    ) -> Blocks:
        """Return the blocks of an operation; none if it holds no more than its results.

        Args:
            func: the operation.
            args: its arguments.
            kwargs: its keyword arguments.
            live_bytes: live bytes when the operation is called.
        """
        ...

    def in_order(self, func: Operation, out: Any) -> Any:
        """Return an operation's results in the order in which they are allocated."""
        return out

    def workspaces(
        self, func: Operation, args: Arguments, out: Any
    ) -> tuple[tuple[Tensor, int], ...]:
        """Return results that are workspaces for a backward, with their bytes on the device.

        Fake tensors show these as empty.
        """
        return ()


def understated_results(
    func: Operation, args: Arguments, out: Any
) -> tuple[tuple[Tensor, int], ...]:
    """Return the results whose storage is larger than that of the fake tensors, with real bytes.

    *col2im* resizes its result from the size of its input, and a storage never shrinks
    (aten/src/ATen/native/Col2Im.cpp, cuda/Col2Im.cu).

    *Normalisation* of 16-bit inputs keeps mean and reciprocal standard deviation in 32 bits, where
    fake tensors have 16. On a CPU this holds if the weights are 32-bit
    (aten/src/ATen/native/Normalization.cpp, layer_norm.cpp, group_norm.cpp), on CUDA always
    (``acc_type``).
    """
    packet = func._overloadpacket
    if packet is torch.ops.aten.col2im:
        return ((out, max(storage_bytes(out), args[0].numel() * args[0].element_size())),)
    if packet in _NORMALISATIONS and out[0].element_size() == 2:
        statistics = (t for t in out[1:3] if t.element_size() == 2)
        return tuple((t, 2 * storage_bytes(t)) for t in statistics)
    return ()


_NORMALISATIONS = (
    torch.ops.aten.native_batch_norm,
    torch.ops.aten._native_batch_norm_legit,
    torch.ops.aten._batch_norm_with_update,
    torch.ops.aten.native_layer_norm,
    torch.ops.aten.native_group_norm,
)


def storage_bytes(tensor: Tensor) -> int:
    """Return the bytes of the storage that a tensor is a view of."""
    return tensor.untyped_storage().nbytes()
