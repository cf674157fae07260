"""One step on meta tensors: the operations of a replay, at about a tenth of its time.

A replay on fake tensors follows every storage, which thousands of published runs do not need. Here
the tensors are on ``meta``, whose kernels are PyTorch's own, and CUDA's autocast is applied where
the functions are called. A test compares the operations with those of a replay.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from profiler.device_rules.cuda_autocast import _FP32, _FP32_DTYPE, _PROMOTE, LOWER
from profiler.operations import only_allocates, only_views
from profiler.replay.event_log import OperationRecord, Phase
from profiler.replay.operation_counter import OperationCounter


def _names(listed: Any) -> set[str]:
    return {name.partition(".")[0] for name in listed}


_LOWER = _names(LOWER) | {"conv2d", "linear", "matmul", "__matmul__", "__rmatmul__"}
_FLOAT = _names(_FP32.split())
_FLOAT_DTYPE = _names(_FP32_DTYPE.split())
_WIDEST = _names(_PROMOTE.split())
_SOFTMAX = {"softmax": torch.ops.aten._softmax, "log_softmax": torch.ops.aten._log_softmax}


class MetaAutocast(TorchFunctionMode):
    """CUDA's autocast to fp16, for tensors on ``meta``."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Cast the arguments as autocast does, then call the function."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LOWER:
            args, kwargs = tree_map(self._half, (args, kwargs))
        elif name in _SOFTMAX and kwargs.get("dtype") is None:
            image = args[0]
            dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
            if image.dtype == torch.float16:
                with torch._C.DisableTorchFunction():
                    return _SOFTMAX[name](image, dim, True)
        elif name == "cross_entropy":
            with torch._C.DisableTorchFunction():
                logs = torch.ops.aten._log_softmax(args[0], 1, args[0].dtype == torch.float16)
                return torch.ops.aten.nll_loss_forward(logs, args[1], None, 1, -100)[0]
        elif name in _FLOAT:
            args, kwargs = tree_map(_float, (args, kwargs))
        elif name in _FLOAT_DTYPE and isinstance(args[0], Tensor):
            if args[0].dtype == torch.float16 and kwargs.get("dtype") is None and name != "softmax":
                kwargs["dtype"] = torch.float32
        elif name in _WIDEST:
            args, kwargs = tree_map(_float, (args, kwargs))
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)

    def _half(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not isinstance(value, nn.Parameter):
            return value.half()
        if id(value) not in self._weights:
            self._weights[id(value)] = value.half()
        return self._weights[id(value)]


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


class MetaRecorder(TorchDispatchMode):
    """Counts the operations that run while the mode is active."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.phase = Phase.FORWARD
        self.counter = OperationCounter(batch=batch)
        self._skip: dict[Any, bool] = {}

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        out = self._run(func, args, kwargs)
        skip = self._skip.get(func)
        if skip is None:
            skip = func.namespace == "prim" or only_views(func) or only_allocates(func)
            self._skip[func] = skip
        if not skip:
            self.counter.count(func, args, kwargs, out, phase=self.phase, unit=-1)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation; results of an equal earlier one, or of a norm, are only allocated."""
        if func is _NORM:
            image = args[0]
            stats = image.new_empty(image.shape[1], dtype=torch.float32)
            return torch.empty_like(image), stats, torch.empty_like(stats)
        if func is _NORM_BACKWARD:
            _, image, weight = args[:3]
            made = torch.empty_like(image) if args[9][0] else None
            sums = [
                torch.empty_like(weight) if w and weight is not None else None for w in args[9][1:]
            ]
            return made, *sums
        if not _is_functional(func):
            return func(*args, **kwargs)
        key = (func, _signature(args), _signature(tuple(kwargs.items())))
        known = _RESULTS.get(key)
        if known is None:
            out = func(*args, **kwargs)
            _RESULTS[key] = _described(out)
            return out
        return _made(known)


_NORM = torch.ops.aten.native_batch_norm.default
_NORM_BACKWARD = torch.ops.aten.native_batch_norm_backward.default
_RESULTS: dict[Any, Any] = {}
_FUNCTIONAL: dict[Any, bool] = {}


def _is_functional(func: Any) -> bool:
    known = _FUNCTIONAL.get(func)
    if known is None:
        schema = func._schema
        ends = [*schema.arguments, *schema.returns]
        known = func.namespace == "aten" and not any(e.alias_info is not None for e in ends)
        known = known and func is not torch.ops.aten._unsafe_view.default
        _FUNCTIONAL[func] = known
    return known


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ("t", tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, tuple | list):
        return tuple(map(_signature, value))
    return (type(value), value)


def _described(out: Any) -> Any:
    if isinstance(out, Tensor):
        return ("t", tuple(out.shape), out.stride(), out.dtype)
    if isinstance(out, tuple | list):
        return tuple(map(_described, out))
    return out


def _made(known: Any) -> Any:
    if isinstance(known, tuple) and known and known[0] == "t":
        return torch.empty_strided(known[1], known[2], dtype=known[3], device="meta")
    if isinstance(known, tuple):
        return tuple(map(_made, known))
    return known


def meta_step(
    model: nn.Module, *, batch: int, image_size: int, training: bool, half: bool = True
) -> list[OperationRecord]:
    """Return the operations of forward, and of loss and backward in training.

    Args:
        model: model on ``meta``, in the mode of the step.
        batch: images.
        image_size: pixels of a side.
        training: whether loss and backward run.
        half: whether autocast to fp16 is on.
    """
    recorder = MetaRecorder(batch)
    images = torch.empty(batch, 3, image_size, image_size, device="meta")
    with torch.set_grad_enabled(training), recorder:
        with MetaAutocast() if half else nullcontext():
            out = model(images)
            if isinstance(out, tuple | list):
                out = out[0]
            if training:
                labels = torch.empty(batch, dtype=torch.long, device="meta")
                loss = nn.functional.cross_entropy(out, labels)
        if training:
            recorder.phase = Phase.BACKWARD
            loss.backward()
    return recorder.counter.records
