"""What crosses a stage: frozen records, all in bytes, seconds, joules and FLOPs.

``to_json`` of a :class:`Report` is the command-line contract's ``predict --json`` and
``measure --json`` (null where a quantity is not known).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, TypeVar

from profiler.errors import InputError
from profiler.workload import Candidate

OWNERS = (
    "parameter",
    "buffer",
    "gradient",
    "activation",
    "optimizer",
    "input",
    "temporary",
)
"""Who a byte belongs to. The order is that of the codes in an event log."""

_T = TypeVar("_T")
_R = TypeVar("_R", bound="Report")

COMPOSED = "composed"
REPLAYED = "replayed"
MEASURED = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerBytes:
    """Bytes by owner."""

    parameter: int = 0
    buffer: int = 0
    gradient: int = 0
    activation: int = 0
    optimizer: int = 0
    input: int = 0
    temporary: int = 0

    @property
    def total(self) -> int:
        """Sum over the owners."""
        return sum(getattr(self, owner) for owner in OWNERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of one steady training step.

    Attributes:
        peak_bytes: highest live bytes; on CUDA what ``max_memory_allocated()`` reports.
        reserved_bytes: what ``max_memory_reserved()`` reports; None on a CPU.
        device_bytes: reserved bytes plus the CUDA context: what a budget is held against. On a
            CPU the peak, since nothing is reserved there.
        at_peak: live bytes by owner at the moment of the peak.
        max_by_group: the highest of each owner over the step, at whatever moment.
    """

    peak_bytes: int
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    at_peak: OwnerBytes | None = None
    max_by_group: OwnerBytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of one optimizer step (a multiply-add counts two).

    Attributes:
        forward: of all micro-batches.
        backward: likewise, without recomputation.
        recompute: forward work done again in backward.
        optimizer: of the update (elementwise work), None when not counted.
    """

    forward: int
    backward: int
    recompute: int = 0
    optimizer: int | None = None

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.backward + self.recompute + (self.optimizer or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitReport:
    """One unit of the backbone under the candidate's placement.

    Attributes:
        name: module name.
        decision: what the placement does with it.
        stored_bytes: growth of live bytes over its forward, its output included.
        boundary_bytes: its output alone.
        working_bytes: highest live bytes during its backward above the level at its entry.
        forward_flops: of one micro-batch.
        backward_flops: of one micro-batch.
        recompute_flops: of one micro-batch.
        forward_seconds: roofline of its forward on the device; None without one.
        recompute_seconds: roofline of what is recomputed; None without a device.
    """

    name: str
    decision: str
    stored_bytes: int
    boundary_bytes: int
    working_bytes: int | None
    forward_flops: int
    backward_flops: int
    recompute_flops: int
    forward_seconds: float | None = None
    recompute_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameter counts (numbers, not bytes)."""

    total: int
    trainable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLabel:
    """The device a report speaks of.

    Attributes:
        name: ``cpu`` or a name of the sourced table.
        full_name: for people.
        kind: ``cpu`` or ``cuda``.
        memory_bytes: installed memory, None when not known.
        note: why this device, when the user did not choose it.
    """

    name: str
    full_name: str
    kind: str
    memory_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A prediction or a measurement of one candidate on one device.

    Attributes:
        candidate: what was predicted or measured.
        device: where.
        rung: ``composed``, ``replayed`` or ``measured``.
        memory: bytes.
        flops: of one optimizer step; None when a measurement did not count them.
        step_seconds: one optimizer step, all its micro-batches.
        energy_joules: likewise.
        parameters: counts.
        units: in forward order.
        notes: what the reader must know (uncalibrated time, assumed context, ...).
        details: raw trials, environment: JSON data.
    """

    candidate: Candidate
    device: DeviceLabel
    rung: str
    memory: Memory
    flops: Flops | None
    step_seconds: float | None
    energy_joules: float | None
    parameters: Parameters
    units: tuple[UnitReport, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the contract's object."""
        kind = "measurement" if self.rung == MEASURED else "prediction"
        return {
            "schema": f"budgetplan.{kind}/1",
            "workload": self.candidate.workload.to_json(),
            "placement": self.candidate.placement.to_json(),
            "device": asdict(self.device),
            "rung": self.rung,
            "memory": asdict(self.memory),
            "flops": None if self.flops is None else asdict(self.flops),
            "step_seconds": self.step_seconds,
            "energy_joules": self.energy_joules,
            "parameters": asdict(self.parameters),
            "units": [asdict(unit) for unit in self.units],
            "notes": list(self.notes),
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read what ``to_json`` wrote (a plan file's part, which may come from a stranger).

        Raises:
            InputError: the data is not a report.
        """
        try:
            return _report_from(cls, data)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"not a prediction or measurement: {error!r}") from error


def _report_from(cls: type[_R], data: Any) -> _R:
    memory = dict(data["memory"])
    for part in ("at_peak", "max_by_group"):
        if memory.get(part) is not None:
            memory[part] = _record(OwnerBytes, memory[part])
    return cls(
        candidate=Candidate.from_json(data),
        device=_record(DeviceLabel, data["device"]),
        rung=str(data["rung"]),
        memory=_record(Memory, memory),
        flops=None if data["flops"] is None else _record(Flops, data["flops"]),
        step_seconds=_number(data["step_seconds"]),
        energy_joules=_number(data["energy_joules"]),
        parameters=_record(Parameters, data["parameters"]),
        units=tuple(_record(UnitReport, unit) for unit in data["units"]),
        notes=tuple(str(note) for note in data.get("notes", ())),
        details=dict(data.get("details", {})),
    )


_CHECKS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
    "str": (str,),
}


def _record(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """Build a flat record, checking the type of every plain field; unknown keys are dropped."""
    chosen = {}
    for spec in fields(kind):  # type: ignore[arg-type]
        if spec.name not in data:
            continue
        value = data[spec.name]
        allowed = _CHECKS.get(str(spec.type))
        if allowed is not None and (not isinstance(value, allowed) or isinstance(value, bool)):
            raise TypeError(f"{spec.name} must be {spec.type}, got {value!r}")
        chosen[spec.name] = value
    return kind(**chosen)


def _number(value: object) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"expected a number or null, got {value!r}")
    return None if value is None else float(value)
