"""Memory that a training step of any ``nn.Module`` needs: peak, its tensors, and whether it fits.

    estimate_of      reads the replay of a step for a device
    ModuleEstimate   peak, reserved and device bytes, and the tensors alive at the peak
    LiveTensor       one of these tensors: bytes, owner, module, operation, shape

Limitations:

- Recurrent layers on CUDA: cuDNN holds memory inside its kernels that is not included. Such an
  estimate is marked by a note. On a CPU oneDNN's workspace is included.
- A step whose operations depend on the values of tensors cannot be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from profiler.device_rules.caching_allocator import AllocatorSettings, configuration
from profiler.devices.table import DeviceSpec
from profiler.prediction.allocator_steps import BLOCK_BYTES
from profiler.prediction.report import cuda_memory, host_memory
from profiler.records import OWNERS, Memory
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.fake_model import tensors_in_move_order
from profiler.replay.module_replay import ModuleStep
from profiler.units import parse_bytes

ESTIMATE_SCHEMA = "budgetplan.estimate/1"

_RECURRENT_NAMES = ("lstm", "gru", "rnn")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTensor:
    """A storage that is alive at the peak.

    Attributes:
        nbytes: bytes on the device, rounded as its allocator rounds.
        owner: one of ``profiler.records.OWNERS``.
        name: name of the parameter or buffer; empty for other tensors.
        module: module without children in whose forward or backward it was made; empty outside.
        operation: aten operation that made it; empty for tensors from before the step.
        shape: shape of the tensor; ``()`` also for memory inside an operation.
    """

    nbytes: int
    owner: str
    name: str
    module: str
    operation: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleEstimate:
    """Predicted memory of a steady training step of a module.

    Attributes:
        device: device that the bytes are for.
        memory: peak, reserved and device bytes, and bytes by owner.
        tensors: storages alive at the peak, the largest first.
        phase: phase of the step in which the peak occurs.
        notes: sentences for the reader.
    """

    device: DeviceSpec
    memory: Memory
    tensors: tuple[LiveTensor, ...]
    phase: str
    notes: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        """Bytes that a budget is compared with (``Memory.compared_bytes``)."""
        return self.memory.compared_bytes

    def fits(self, vram: int | str | None = None) -> bool:
        """Return whether the step fits a budget.

        Args:
            vram: budget in bytes or as text such as ``2GB``; None for the memory of the device.

        Raises:
            ValueError: the text is no size, or the memory of the device is not known.
        """
        given = parse_bytes(vram) if isinstance(vram, str) else vram
        limit = self.device.memory_bytes if given is None else given
        if limit is None:
            raise ValueError(f"the memory of {self.device.name} is not known; give a budget")
        return self.needed_bytes <= limit

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "schema": ESTIMATE_SCHEMA,
            "device": self.device.name,
            "rung": "replayed",
            "memory": asdict(self.memory),
            "phase": self.phase,
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "notes": list(self.notes),
        }


def estimate_of(step: ModuleStep, log: EventLog, *, device: DeviceSpec) -> ModuleEstimate:
    """Read the log of a replayed step (``replay_module``) as its memory on a device."""
    notes: list[str] = []
    if device.is_cuda:
        log = log.rounded(BLOCK_BYTES)
        settings = AllocatorSettings.parse(configuration())
        notes.append(f"reserved bytes are those of {configuration()}")
        memory = cuda_memory(log, device, settings, notes)
    else:
        memory = host_memory(log)
    if device.is_cuda and any(
        word in name for name in log.operation_names for word in _RECURRENT_NAMES
    ):
        notes.append("memory inside the kernels of recurrent layers is not included")
    tick = log.peak_tick
    return ModuleEstimate(
        device=device,
        memory=memory,
        tensors=live_tensors(log, tick, _names(step.module)),
        phase=_phase_at(log, tick),
        notes=tuple(notes),
    )


def _names(module: nn.Module) -> list[str]:
    """Return the names of parameters and buffers with bytes, in the order of their storages."""
    name_of = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
    seen: dict[int, str] = {}
    for tensor in tensors_in_move_order(module):
        if tensor.numel():
            seen.setdefault(id(tensor), name_of.get(id(tensor), ""))
    return list(seen.values())


def live_tensors(log: EventLog, tick: int, names: Sequence[str] = ()) -> tuple[LiveTensor, ...]:
    """Return the storages alive at a tick, the largest first.

    Args:
        log: log of a step.
        tick: moment of the step.
        names: names of the storages from before the step, in their order.
    """
    alive = np.flatnonzero((log.birth <= tick) & (log.death > tick))
    largest = alive[np.argsort(-log.nbytes[alive], kind="stable")]
    given = np.flatnonzero(log.phase == Phase.SETUP).tolist()
    name_of = dict(zip(given, names, strict=False))
    return tuple(
        LiveTensor(
            nbytes=int(log.nbytes[row]),
            owner=OWNERS[log.owner[row]],
            name=name_of.get(row, ""),
            module=log.units[log.unit[row]] if log.unit[row] >= 0 else "",
            operation="" if row in name_of else log.operation_names[log.operation[row]],
            shape=log.shapes[row],
        )
        for row in largest.tolist()
    )


def _phase_at(log: EventLog, tick: int) -> str:
    from profiler.replay.unit_spans import phase_spans

    spans = phase_spans(log.marks, log.ticks)
    return next((s.phase.label for s in spans if s.begin <= tick <= s.end), "setup")
