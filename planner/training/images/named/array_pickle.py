"""Read a NumPy array from a pickle, without running anything that the pickle names.

A pickle of an array calls three names of NumPy. Here they stand for small classes that keep the
arguments, so neither NumPy's functions nor any other are called by the pickle. The array is made
afterwards from the checked type, shape and bytes. Every other name is refused.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.training.images.image_files import error_text
from profiler.errors import InputError

if TYPE_CHECKING:
    import numpy as np

LARGEST_PICKLE_BYTES = 64 * 2**20
"""Most bytes of a pickle after decompression."""

TYPES = frozenset(("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))
"""Types of an array's elements that are read: integers."""


class _Dtype:
    def __init__(self, name: object = "", *_: object) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


class _Array:
    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = tuple(state)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                return _Array
            case "numpy", "ndarray":
                return _Array
            case "numpy", "dtype":
                return _Dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """Return the array of integers in a gzip-compressed pickle.

    Raises:
        InputError: the file cannot be read, is too large, or holds anything else.
    """
    try:
        with gzip.open(path, "rb") as file:
            content = file.read(LARGEST_PICKLE_BYTES + 1)
        if len(content) > LARGEST_PICKLE_BYTES:
            raise ValueError(f"more than {LARGEST_PICKLE_BYTES} bytes")
        return _array_of(_ArrayUnpickler(io.BytesIO(content)).load())
    except Exception as error:  # damaged pickles raise errors of many classes
        raise InputError(
            f"cannot read {path} as a pickled array of integers: {error_text(error)}; "
            "install its package again"
        ) from error


def _array_of(found: object) -> np.ndarray[Any, Any]:
    """Return the array that the arguments of a pickle describe."""
    import numpy as np

    if not isinstance(found, _Array) or len(found.state) != 5:
        raise ValueError(f"it holds {type(found).__name__.strip('_')}")
    _, shape, dtype, is_fortran, data = found.state
    if not isinstance(dtype, _Dtype) or dtype.name not in TYPES or dtype.order not in "<>|=":
        raise ValueError(f"elements of type {getattr(dtype, 'name', dtype)!r}")
    if is_fortran or not isinstance(data, bytes):
        raise ValueError("the bytes are not in the order of C")
    element = np.dtype(dtype.order.replace("=", "<").replace("|", "<") + dtype.name)
    sizes = tuple(int(size) for size in shape)
    if any(size < 0 for size in sizes) or math.prod(sizes) * element.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for shape {sizes}")
    return np.frombuffer(data, element).reshape(sizes)
