"""The call of a whole module (a unit or a branch), with all tensors saved inside dropped.

A recomputation stops at the last saved tensor. With an adapter (LoRA), this still runs a matmul in
vain. The module runs the frozen layer first and the adapter's small matmuls after it, so the
adapter's saved tensors come after the frozen layer's matmul. If no tensor saved after a frozen
layer depends on the layer's output, the recomputation can skip that matmul:

    forward         x ──┬── frozen layer ──── y ──┐
                        └── A ── B ───────────── (+) ── output
    recomputation   fills x (saved by A) and A x (saved by B); runs the frozen layer only if the
                    output is needed

``SkippableLayer`` is the last frozen layer of a call that can be skipped. A recomputation that does
not need the call's output replaces the layer's output by uninitialised memory of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from profiler.checkpointing.recompute import (
    RecomputableCall,
    RecomputableFunction,
    SavedTensor,
    StoreInput,
    recomputing,
    running,
    unpack,
)


class ModuleCall(RecomputableCall):
    """A module's forward with all tensors saved inside dropped.

    Attributes:
        skippable: the last frozen layer, as long as no tensor saved after it depends on its output.
        frozen_storages: while a frozen layer runs, the storages of its weights (with None) and of
            their autocast copies (with the call that casts again); None at all other times. A layer
            that saves any other storage cannot be skipped.
        in_adapter: True while an adapter or a dropout runs. Tensors without a graph that are saved
            then (dropout masks) do not depend on the frozen layer's output.
    """

    __slots__ = ("frozen_storages", "in_adapter", "skippable")

    def __init__(
        self,
        function: RecomputableFunction,
        args: Sequence[object],
        kwargs: dict[str, object],
        *,
        store_input: StoreInput,
    ) -> None:
        super().__init__(function, args, kwargs, store_input=store_input)
        self.skippable: SkippableLayer | None = None
        self.frozen_storages: dict[int, RecomputableCall | None] | None = None
        self.in_adapter = False

    def run_first(self, args: Sequence[object], kwargs: dict[str, object]) -> object:
        """Run the forward and drop its saved tensors."""
        try:
            with running(self), saved_tensors_hooks(self._pack, unpack):
                output = self.function.run(*args, **kwargs)
        finally:
            if self.skippable is not None:
                # the graph holds SavedTensors and these hold the call: a reference to the graph
                # would be a cycle, and memory would wait for the garbage collector
                self.skippable.node = None
        self.forget_unused_random_state()
        return output

    def _pack(self, tensor: Tensor) -> SavedTensor | Tensor:
        if self.frozen_storages is not None:
            address = tensor.untyped_storage()._cdata
            if address in self.frozen_storages:
                self.skip()
                # a weight stays in memory anyway; an autocast copy is dropped and cast again
                cast = self.frozen_storages[address]
                return tensor.detach() if cast is None else cast.view_of_output(tensor)
            self.frozen_storages = None  # the layer saves activations, so it cannot be skipped
        elif self.skippable is not None and self.skippable.may_lead_to(
            tensor, in_adapter=self.in_adapter
        ):
            self.skippable = None
        return self.pack_empty(tensor)

    def run_frozen(
        self,
        layer: Callable[..., Any],
        args: Sequence[object],
        kwargs: dict[str, object],
        *,
        storages: dict[int, RecomputableCall | None],
    ) -> object:
        """Run a frozen layer inside the call, or skip it in a recomputation.

        Args:
            layer: the layer.
            args: its arguments.
            kwargs: its keyword arguments.
            storages: see ``frozen_storages``.
        """
        if recomputing():
            skipped = self.skippable
            # a call may contain several frozen layers; the position identifies the skippable one
            at_start = skipped is not None and self.position + 1 == skipped.start
            if skipped is None or not at_start or self.is_output_wanted():
                return layer(*args, **kwargs)
            # later saved tensors keep the positions that they had in the first forward
            self.position = skipped.stop - 1
            return skipped.stand_in()
        self.skippable, self.frozen_storages, start = None, storages, len(self.saved)
        try:
            output = layer(*args, **kwargs)
            is_skippable = self.frozen_storages is not None  # see _pack
            if is_skippable and isinstance(output, Tensor) and output.grad_fn is not None:
                self.skippable = SkippableLayer(output, start=start, stop=len(self.saved))
        finally:
            self.frozen_storages = None
        return output


class SkippableLayer:
    """The call of a frozen layer on whose output no later saved tensor depends.

    Args:
        output: output of the layer.
        start: position of the first tensor that it saved, in ``RecomputableCall.saved``.
        stop: position after the last one.
    """

    __slots__ = ("like", "node", "start", "stop")

    def __init__(self, output: Tensor, *, start: int, stop: int) -> None:
        self.node = output.grad_fn
        self.like = (tuple(output.shape), output.dtype, output.device)
        self.start, self.stop = start, stop

    def may_lead_to(self, tensor: Tensor, *, in_adapter: bool) -> bool:
        """Return False only if a saved tensor is known not to depend on the layer's output.

        Args:
            tensor: the saved tensor.
            in_adapter: see ``ModuleCall``. Elsewhere a tensor without a graph (a mask) may depend
                on the output.
        """
        assert self.node is not None
        if tensor.grad_fn is None:
            # a leaf (an input or a parameter) was computed from nothing
            return not (in_adapter or tensor.requires_grad or isinstance(tensor, nn.Parameter))
        oldest = self.node._sequence_nr()
        pending, seen = [tensor.grad_fn], set()
        while pending:
            node = pending.pop()
            if node is self.node:
                return True
            # a node with a smaller number was made before the layer's and cannot depend on it
            if node not in seen and node._sequence_nr() > oldest:
                seen.add(node)
                pending += [before for before, _ in node.next_functions if before is not None]
        return False

    def stand_in(self) -> Tensor:
        """Return uninitialised memory of the output's shape; no result depends on its values.

        It requires gradients as the output did: operations that save tensors only in that case
        must save the same tensors again.
        """
        standing: Tensor = _StandIn.apply(torch.empty(0, requires_grad=True), *self.like)
        return standing


class _StandIn(torch.autograd.Function):
    """Uninitialised memory with a graph that ends here."""

    @staticmethod
    def forward(
        ctx: object,
        anchor: Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> object:
        raise RuntimeError("backward inside a recompute is not supported")
