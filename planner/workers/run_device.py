"""The device of a worker, and the orders that it can run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from planner.target_device import find_target
from planner.training.images.registry import FOLDER_VARIANT, find_named
from planner.workers.orders import RunOrder
from profiler.devices.table import device_spec
from profiler.environment import processor_name
from profiler.errors import DeviceError, InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDevice:
    """A device of this machine.

    Attributes:
        name: ``cpu`` or a name of the device table.
        kind: ``cpu`` or ``cuda``.
        memory_bytes: installed memory; None when unknown.
        processor: model name of the CPU.
    """

    name: str
    kind: Literal["cpu", "cuda"]
    memory_bytes: int | None
    processor: str

    def why_not(self, order: RunOrder) -> str | None:
        """Return the reason for which this device cannot run an order; None if it can.

        A GPU runs plans for the same model of GPU, so that a measurement is of the planned device.
        A plan for a CPU runs on an equal processor, for the same reason.
        """
        found = None
        planned_cpu = order.planned.kind == "cpu"
        if self.memory_bytes is not None and order.needed_bytes > self.memory_bytes:
            found = "it needs more memory than this device has"
        elif self.kind == "cuda" and self.name != order.planned.name:
            found = f"it is planned for {order.planned.name}"
        elif self.kind == "cpu" and planned_cpu and order.processor != self.processor:
            found = f"it is planned for {order.processor}"
        elif self.kind == "cpu" and not planned_cpu and not order.allows_cpu:
            found = f"it is planned for {order.planned.name}, and not to be run on a CPU"
        else:
            found = _why_no_weights(order) or _why_no_data(order.data)
        return found


def this_device(name: str = "auto") -> RunDevice:
    """Return a device of this machine.

    Args:
        name: ``auto`` for the GPU, or the CPU if there is none; ``cpu``; or the name of the GPU.

    Raises:
        DeviceError: the named GPU is not in this machine.
        UnknownNameError: no such device.
    """
    target = find_target(name)
    if name != "auto" and target.runs_on != target.label.name:
        raise DeviceError(f"{target.label.name} is not in this machine; use --device auto or cpu")
    if target.runs_on == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return RunDevice(name="cpu", kind="cpu", memory_bytes=pages, processor=processor_name())
    return RunDevice(
        name=target.runs_on,
        kind="cuda",
        memory_bytes=device_spec(target.runs_on).memory_bytes,
        processor=processor_name(),
    )


def _why_no_weights(order: RunOrder) -> str | None:
    """Return why this machine lacks the weights of an order; None if it has them."""
    from profiler.models.backbones import split_entry

    if order.weights is None:
        return None
    path = split_entry(Path(order.weights))[0]
    if not path.is_file():
        return f"there is no file {order.weights} here"
    try:
        state = path.stat()
        found = _weights_hash(order.weights, state.st_mtime_ns, state.st_size)
    except (InputError, OSError) as error:
        return str(error)
    if found != order.weights_sha256:
        return f"{order.weights} holds other weights here than where the run was ordered"
    return None


@lru_cache(maxsize=16)
def _weights_hash(weights: str, changed_ns: int, size_bytes: int) -> str | None:
    """Return the SHA-256 of a weights file; time and size of the file are its key."""
    del changed_ns, size_bytes
    from planner.training.trained_model import weights_file_of

    found = weights_file_of(Path(weights))
    return None if found is None else found.sha256


def _why_no_data(data: str) -> str | None:
    """Return why this machine lacks images; None if it has their folder, or loads them by name."""
    named = find_named(data)
    if named is None:
        folder = data
    elif named[0].variant == FOLDER_VARIANT and named[1]:
        folder = named[1]
    else:
        return None
    is_here = Path(folder).expanduser().is_dir()
    return None if is_here else f"there is no folder {folder} here"
