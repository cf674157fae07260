"""The call of a torch function, such as a norm or an activation function.

Whether dropping a call's saved tensors frees memory is known only after the call. Until then they
stay filled (``pack_held``). Afterwards the caller decides:

    drop               empty the saved tensors; backward recomputes them
    release_inputs     keep all saved tensors, as in the plain model; the call is never recomputed

Small saved tensors (``pack_small``), such as a norm's statistics, stay filled as long as no
operation saves a view of the output. Once one does, they are dropped too: the backward of that
operation runs before the call's own, unpacks the view, and so recomputes the call. The
recomputation fills the small saved tensors as well.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from profiler.checkpointing.recompute import (
    OutputView,
    RecomputableCall,
    RecomputableFunction,
    SavedTensor,
    StoreInput,
    no_tensor,
)


class FunctionCall(RecomputableCall):
    """A call of a torch function.

    Attributes:
        small: weak references to the small saved tensors.
    """

    __slots__ = ("small",)

    def __init__(
        self,
        function: RecomputableFunction,
        args: Sequence[object],
        kwargs: dict[str, object],
        *,
        store_input: StoreInput,
    ) -> None:
        super().__init__(function, args, kwargs, store_input=store_input)
        self.small: list[weakref.ref[SavedTensor]] = []

    def pack_held(self, tensor: Tensor) -> SavedTensor:
        """Hold a saved tensor until the caller drops it or releases the inputs."""
        view = OutputView(self, tensor)  # the saved tensor may be the output itself (``drop``)
        view.tensor = tensor.detach()
        self.saved.append(weakref.ref(view))
        return view

    def pack_small(self, tensor: Tensor) -> SavedTensor:
        """Hold a small saved tensor: recomputing it alone costs more than storing it."""
        saved = self.pack_empty(tensor)
        saved.tensor = tensor.detach()
        self.small.append(weakref.ref(saved))
        return saved

    def drop(self, position: int, saved: OutputView, output: Tensor) -> None:
        """Empty a saved tensor.

        If the function saved its own output (ReLU), or its backward can use the output (ReLU6), the
        saved tensor becomes a view of the output: one recomputation then serves both.

        Args:
            position: index in ``RecomputableCall.saved``.
            saved: the saved tensor at this position.
            output: output of the call.
        """
        assert saved.tensor is not None
        is_output = saved.tensor.untyped_storage()._cdata == output.untyped_storage()._cdata
        if is_output or self.function.output_serves_backward:
            self.saved[position] = no_tensor
            self.views.append(weakref.ref(saved))
        saved.tensor = None

    def drop_small(self) -> None:
        """Empty the small saved tensors, unless ``output_from_saved`` needs them."""
        if self.function.output_from_saved is not None:
            return
        for ref in self.small:
            saved = ref()
            if saved is not None:
                saved.tensor = None
        self.small.clear()

    def release_inputs(self) -> None:
        """Free the inputs. The saved tensors stay filled; nothing is recomputed."""
        self.args, self.kwargs, self.random = [], {}, None

    def _run_again(
        self, args: list[object], kwargs: dict[str, object], *, empty: set[int], output_wanted: bool
    ) -> Tensor:
        if not empty and self.function.output_from_saved is not None:
            kept = [saved.tensor for ref in self.small if (saved := ref()) is not None]
            output = self.function.output_from_saved(kept, *args, **kwargs)
            if output is not None:
                return output
        if kwargs.get("inplace"):
            # in place only if no saved tensor is to be filled and nothing else needs the input
            kwargs["inplace"] = not empty and self._is_only_user_of_first(args)
            if kwargs["inplace"]:
                # autograd allows no in-place change of a leaf that requires gradients
                with torch.no_grad():
                    changed: Tensor = self.function.run(*args, **kwargs)
                    return changed.detach()
        return super()._run_again(args, kwargs, empty=empty, output_wanted=output_wanted)

    def _is_only_user_of_first(self, taken: Sequence[object]) -> bool:
        """Return True if only this recomputation holds the tensor taken as first argument."""
        value = self.args[0] if self.args else None
        tensor = taken[0] if taken else None
        return (
            isinstance(value, OutputView)
            and isinstance(tensor, Tensor)
            and not _is_held_by(value.call, tensor)
        )


def _is_held_by(call: RecomputableCall, tensor: Tensor) -> bool:
    """Return True if a saved tensor or a view of a call shares the storage of a tensor."""
    address = tensor.untyped_storage()._cdata
    refs: list[Callable[[], SavedTensor | None]] = [*call.saved, *call.views]
    tensors = (saved.tensor for ref in refs if (saved := ref()) is not None)
    return any(t is not None and t.untyped_storage()._cdata == address for t in tensors)
