"""Recognises the output of a recomputable call among tensors that other operations save.

An operation saves the call's output itself, a view of the output, or under autocast a copy in lower
precision. Output and views share a storage, so they are found by the storage's address. A copy has
a storage of its own. It is found through the autograd graph: the copy's node is a cast, and the
input of the cast comes from the node that made the output.
"""

from __future__ import annotations

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from profiler.checkpointing.recompute import OutputView, RecomputableCall

_VIEW_NODES = ("ViewBackward0", "UnsafeViewBackward0", "TransposeBackward0", "TBackward0")

_CAST_NODE = "ToCopyBackward0"


class _Output:
    """The output of a call: its storage, its version and the autograd node that made it."""

    __slots__ = ("call", "fills_storage", "node", "storage", "version")

    def __init__(self, output: Tensor, call: RecomputableCall) -> None:
        self.call = call
        storage = output.untyped_storage()
        # A weak reference lets the memory be freed, but keeps the StorageImpl object. So no other
        # storage gets its address, the key of the table.
        self.storage = StorageWeakRef(storage)
        self.version = output._version
        self.node = output.grad_fn
        self.fills_storage = output.numel() * output.element_size() == storage.nbytes()


class OutputTable:
    """The outputs of a forward's recomputable calls."""

    __slots__ = ("_by_node", "_by_storage")

    def __init__(self) -> None:
        self._by_storage: dict[int, _Output] = {}
        self._by_node: dict[object, _Output] = {}

    def clear(self) -> None:
        """Forget all outputs."""
        self._by_storage.clear()
        self._by_node.clear()

    def __contains__(self, tensor: Tensor) -> bool:
        known = self._by_storage.get(tensor.untyped_storage()._cdata)
        return known is not None and known.version == tensor._version

    def add(self, output: Tensor, call: RecomputableCall) -> None:
        """Register the output of a call."""
        known = _Output(output, call)
        self._by_storage[output.untyped_storage()._cdata] = known
        # the strides of a cast fit a recomputed and cast output only if both fill their storage
        if known.node is not None and known.fills_storage:
            self._by_node[known.node] = known

    def find(self, tensor: Tensor) -> OutputView | None:
        """Return an empty view if a tensor is an unmodified output, its view or its cast."""
        known = self._by_storage.get(tensor.untyped_storage()._cdata)
        if known is None or known.version != tensor._version:
            known = self._by_node.get(cast_source(tensor))
        return None if known is None else known.call.view_of_output(tensor)


def cast_source(tensor: Tensor) -> object:
    """Return the node whose output was cast to a tensor; None if the tensor is no whole cast."""
    node = tensor.grad_fn
    if node is not None and node.name() in _VIEW_NODES:
        node = node.next_functions[0][0]
    if node is None or node.name() != _CAST_NODE:
        return None
    is_whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return node.next_functions[0][0] if is_whole else None
