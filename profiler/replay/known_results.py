"""Results of operations on fake tensors whose arguments were seen before.

A replay runs a few thousand operations, most of them with the shapes of an earlier one: the blocks
of a network repeat, and so do the replays of a search. ``FakeTensorMode`` caches such results, but
its cache keys and its fake tensors take most of a replay's time. ``run_known`` stores the metadata
of results under a shorter key, which has all metadata that a replay's operations can depend on.

Three kinds of results are stored:

    cached by PyTorch  results that ``FakeTensorMode`` itself has taken from its cache. PyTorch thus
                       decides what may be cached: an operation with an output of unknown shape, or
                       of another library, always runs.
    our own            the selective scans of ``profiler.models.backbones``, whose results are new
                       tensors with shapes that follow from those of the arguments.
    views              every result has the storage of the only tensor among the arguments. PyTorch
                       does not cache those that return a list, or whose schema does not declare
                       the alias.

Results of one operation that share a storage (the gradients of an LSTM's two biases) are never
stored. PyTorch does store them, and returns tensors with storages of their own from then on, so its
cache is left out for such operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from profiler.operations import Arguments, Operation, only_views

_CPU = torch.device("cpu")


class _Metadata(NamedTuple):
    """Metadata of a new tensor.

    Attributes:
        shape: sizes.
        stride: strides.
        dtype: type of its values.
        offset: offset in its storage.
        view_of: position of the argument whose storage it has; None for a storage of its own.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    view_of: int | None


class _Argument(NamedTuple):
    """A result that is an argument: that of an operation in place.

    Attributes:
        position: position of the argument.
    """

    position: int


class _Several(NamedTuple):
    """Several results.

    Attributes:
        kind: type of their container, a list or a tuple.
        each: metadata of each result; None for none.
    """

    kind: Callable[[Iterable[object]], object]
    each: tuple[_Metadata | None, ...]


_Known = _Metadata | _Argument | _Several

OperationKey = tuple[object, ...]
"""An operation and all metadata of its arguments that a result can depend on."""

_known: dict[OperationKey, _Known] = {}
"""Results by operation and arguments. Forked processes inherit them."""

_sharing: set[Operation] = set()
"""Operations of which two results had the same storage, none of an argument."""

_attributes: dict[FakeTensorMode, dict[str, object]] = {}
"""Attributes of a new fake tensor, of the last mode."""

_MOST_KNOWN = 100_000
"""Results that are stored; with more, all are dropped."""

_PLAIN = frozenset(
    (
        int,
        float,
        bool,
        str,
        type(None),
        torch.dtype,
        torch.device,
        torch.layout,
        torch.memory_format,
    )
)
"""Types whose values are part of a key as they are."""


class _UnknownError(Exception):
    """A tensor or an argument has metadata that is not stored."""


def run_known(func: Operation, args: Arguments, kwargs: Mapping[str, object]) -> Any:
    """Return the result of an operation, from the metadata of an equal one if there was one.

    Args:
        func: the operation.
        args: its arguments by position.
        kwargs: its other arguments.
    """
    return run_with_key(func, args, kwargs)[0]


def run_with_key(
    func: Operation, args: Arguments, kwargs: Mapping[str, object]
) -> tuple[Any, OperationKey | None]:
    """Return the result of an operation, and its key if the result was known.

    Operations with one key have arguments and results of equal metadata. A result is known once
    PyTorch's cache or a rule for views has confirmed it; before that the key is None.
    """
    try:
        key, mode = _operation_key(func, args, kwargs)
    except _UnknownError:
        return func(*args, **kwargs), None
    if mode is None:
        return func(*args, **kwargs), None
    if func in _sharing:
        return _run_uncached(mode, func, args, kwargs), None
    known = _known.get(key)
    if known is not None:
        return _made(known, args, mode), key
    return _run_unknown(key, func, args, kwargs, mode), None


def _run_unknown(
    key: OperationKey,
    func: Operation,
    args: Arguments,
    kwargs: Mapping[str, object],
    mode: FakeTensorMode,
) -> Any:
    """Run an operation and store its result, if it may be stored."""
    before = _cache_counts()
    out = func(*args, **kwargs)
    hits, others = _cache_counts()
    # one hit and nothing else: PyTorch's cache had this operation, and no other one ran inside it
    cached = (hits, others) == (before[0] + 1, before[1]) or func.namespace == "budgetplan"
    view_of = _viewed(func, args, out)
    if cached and view_of is None and _has_several(out) and not func._schema.is_mutable:
        out = _run_uncached(mode, func, args, kwargs)  # PyTorch's cache may have lost the sharing
    if view_of is None and _share_a_storage(args, out):
        _sharing.add(func)
        return out
    if cached or view_of is not None:
        try:
            known = _known_result(args, out, view_of)
        except _UnknownError:
            return out
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = known
    return out


def _run_uncached(
    mode: FakeTensorMode, func: Operation, args: Arguments, kwargs: Mapping[str, object]
) -> Any:
    """Run an operation without PyTorch's cache of fake results."""
    enabled, mode.cache_enabled = mode.cache_enabled, False
    try:
        return func(*args, **kwargs)
    finally:
        mode.cache_enabled = enabled


def _has_several(out: object) -> bool:
    return isinstance(out, list | tuple) and len(out) > 1


def _share_a_storage(args: Arguments, out: Any) -> bool:
    """Return whether two results have the same storage, which is not that of an argument."""
    if not _has_several(out):
        return False
    given = {arg.untyped_storage()._cdata for arg in args if isinstance(arg, Tensor)}
    storages = [x.untyped_storage()._cdata for x in out if isinstance(x, Tensor)]
    own = [storage for storage in storages if storage not in given]
    return len(set(own)) < len(own)


def fake_empty(like: Tensor, mode: FakeTensorMode) -> FakeTensor:
    """Return a new fake CPU tensor with the metadata of a tensor.

    Args:
        like: tensor on any device.
        mode: mode of the new tensor.
    """
    metadata = _Metadata(like.shape, like.stride(), like.dtype, 0, None)
    return _tensor(metadata, (), mode)


def _cache_counts() -> tuple[int, int]:
    """Return hits of PyTorch's cache of fake results, and the number of all other operations."""
    info = FakeTensorMode.cache_info()
    return info.hits, info.misses + sum(info.bypasses.values())


def _operation_key(
    func: Operation, args: Arguments, kwargs: Mapping[str, object]
) -> tuple[OperationKey, FakeTensorMode | None]:
    """Return the key of an operation, and the mode of its fake tensors; None without one.

    Raises:
        _UnknownError: an argument is neither a plain value nor a plain fake tensor on the CPU.
    """
    parts: list[object] = [func]
    mode = _append(parts, args, None)
    for name, value in kwargs.items():
        parts.append(name)
        mode = _append(parts, (value,), mode)
    return tuple(parts), mode


def _append(
    parts: list[object], values: Sequence[object], mode: FakeTensorMode | None
) -> FakeTensorMode | None:
    """Append the key's parts of some values; return the mode of the fake tensors so far."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            assert isinstance(value, FakeTensor)
            if value.constant is not None:
                raise _UnknownError
            parts.append(value.requires_grad)
            parts.append(_metadata(value, None))
            mode = value.fake_mode
        elif kind in _PLAIN:
            parts.append(kind)  # 1, 1.0 and True are equal, but have different results
            parts.append(value)
        elif isinstance(value, list | tuple):
            parts.append(len(value))
            mode = _append(parts, value, mode)
        else:
            raise _UnknownError
    return mode


def _metadata(tensor: FakeTensor, view_of: int | None) -> _Metadata:
    """Return the metadata of a fake tensor.

    Raises:
        _UnknownError: the tensor has metadata of other kinds.
    """
    dtype = tensor.dtype
    if tensor.fake_device != _CPU or tensor.layout is not torch.strided or dtype.is_complex:
        raise _UnknownError
    offset = int(tensor.storage_offset())
    return _Metadata(tensor.shape, tensor.stride(), dtype, offset, view_of)


def _viewed(func: Operation, args: Arguments, out: object) -> int | None:
    """Return the position of the argument that all results are views of; None if there is none."""
    if not only_views(func):
        return None
    tensors = [position for position, arg in enumerate(args) if isinstance(arg, Tensor)]
    results: Sequence[Any] = out if isinstance(out, list | tuple) else [out]
    if len(tensors) != 1 or not all(isinstance(each, Tensor) for each in results):
        return None
    storage = args[tensors[0]].untyped_storage()._cdata
    same = all(each.untyped_storage()._cdata == storage for each in results)
    return tensors[0] if same else None


def _known_result(args: Arguments, out: object, view_of: int | None) -> _Known:
    """Return the metadata of a result that is stored.

    Raises:
        _UnknownError: the result is no tensor, or has metadata that is not stored.
    """
    for position, arg in enumerate(args):
        if out is arg:
            return _Argument(position)
    if isinstance(out, list | tuple):
        kind: Callable[[Iterable[object]], object] = list if isinstance(out, list) else tuple
        each = tuple(None if x is None else _result_metadata(x, view_of) for x in out)
        return _Several(kind, each)
    return _result_metadata(out, view_of)


def _result_metadata(tensor: object, view_of: int | None) -> _Metadata:
    if type(tensor) is not FakeTensor or tensor.requires_grad:
        raise _UnknownError
    return _metadata(tensor, view_of)


def _made(known: _Known, args: Arguments, mode: FakeTensorMode) -> object:
    """Return a result from its metadata."""
    if isinstance(known, _Metadata):
        return _tensor(known, args, mode)
    if isinstance(known, _Argument):
        return args[known.position]
    return known.kind(None if each is None else _tensor(each, args, mode) for each in known.each)


def _tensor(known: _Metadata, args: Arguments, mode: FakeTensorMode) -> FakeTensor:
    shape, stride, dtype, offset, view_of = known
    with torch._C._DisableTorchDispatch():
        made = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        if view_of is not None:
            made.set_(args[view_of].untyped_storage(), offset, shape, stride)
        return _fake(made, mode)


def _fake(made: Tensor, mode: FakeTensorMode) -> FakeTensor:
    """Return a fake CPU tensor from a tensor on ``meta``.

    The constructor of ``FakeTensor`` checks its arguments and sets twenty attributes, which takes
    most of the time of a known result. Attributes of a new tensor depend on the mode and the device
    alone, so only the first tensor of a mode is made by the constructor.
    """
    attributes = _attributes.get(mode)
    if attributes is None:
        tensor = FakeTensor(mode, made, _CPU)
        _attributes.clear()
        _attributes[mode] = dict(vars(tensor))
        return tensor
    tensor = Tensor._make_subclass(
        FakeTensor, made, False, dispatch_device=True, device_for_backend_keys=_CPU
    )
    vars(tensor).update(attributes)
    return tensor
