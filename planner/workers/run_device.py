"""The device of a worker, and the orders that it can run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from planner.target_device import find_target
from planner.workers.orders import ANY_PROCESSOR, Order
from profiler.devices.table import device_spec
from profiler.environment import processor_name
from profiler.errors import BudgetplanError, DeviceError, InputError
from profiler.records import DeviceKind

RECHECK_SECONDS = 60.0
"""Time for which an answer holds on whether images are here."""


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
    kind: DeviceKind
    memory_bytes: int | None
    processor: str

    def why_not(self, order: Order) -> str | None:
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
        elif (
            self.kind == "cpu"
            and planned_cpu
            and order.processor not in (self.processor, ANY_PROCESSOR)
        ):
            found = f"it is planned for {order.processor}"
        elif self.kind == "cpu" and not planned_cpu and not order.allows_cpu:
            found = f"it is planned for {order.planned.name}, and not to be run on a CPU"
        else:
            found = _why_no_weights(order) or _why_no_pretrained(order) or _why_no_data(order)
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


def _why_no_weights(order: Order) -> str | None:
    """Return why this machine lacks a file of weights of an order; None if it has them."""
    from profiler.models.backbones import split_entry

    for name, sha256 in order.weights_files.items():
        path = split_entry(Path(name))[0]
        if not path.is_file():
            return f"there is no file {name} here"
        try:
            state = path.stat()
            found = _weights_hash(name, state.st_mtime_ns, state.st_size)
        except (InputError, OSError) as error:
            return str(error)
        if found != sha256:
            return f"{name} holds other weights here than where the run was ordered"
    return None


@lru_cache(maxsize=16)
def _weights_hash(weights: str, changed_ns: int, size_bytes: int) -> str | None:
    """Return the SHA-256 of a weights file; time and size of the file are its key."""
    del changed_ns, size_bytes
    from planner.training.trained_model import weights_file_of

    found = weights_file_of(Path(weights))
    return None if found is None else found.sha256


def _why_no_data(order: Order) -> str | None:
    """Return why this machine lacks the images of an order; None if it has them.

    A data set that can be downloaded is downloaded now, so that no time of a run goes into it.
    """
    if order.data is None:
        return None
    return _missing_data(order.data, round(time.monotonic() / RECHECK_SECONDS))


@lru_cache(maxsize=64)
def _missing_data(data: str, period: int) -> str | None:
    """Return why images are not here; the number of the period is a part of the key."""
    del period
    from planner.training.images.load import obtain_data

    try:
        obtain_data(data)
    except BudgetplanError as error:
        return f"the images are not here: {error}"
    return None


def _why_no_pretrained(order: Order) -> str | None:
    """Return why this machine lacks timm's weights of an order; None if it can load them."""
    from profiler.models.backbones import can_load_pretrained

    for model in order.pretrained_models:
        try:
            is_here = can_load_pretrained(model)
        except BudgetplanError as error:
            return str(error)
        if not is_here:
            return f"the pretrained weights of {model} cannot be loaded here"
    return None
