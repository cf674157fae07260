"""Records that cross a stage, a process or a file, in bytes, seconds, joules and FLOPs.

``Report.to_json`` returns the object that ``predict --json`` and ``measure --json`` print, with
null for every unknown quantity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Literal, Self

from msgspec import Meta

from profiler.errors import InputError
from profiler.json_records import (
    MOST_UNITS,
    ByteCount,
    ByteGrowth,
    JsonObject,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    json_object,
    read_record,
    shortened,
    unknown_field,
)
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
"""Owners of a byte, in the order of the codes in an event log."""


class Rung(StrEnum):
    """How far a report was checked, from the cheapest check to the strictest.

    Attributes:
        COMPOSED: sums of per-unit profiles.
        REPLAYED: one whole step on fake tensors, fed to a model of the caching allocator.
        EMULATED: real CUDA code on a device whose kernels do nothing. Only its memory is real.
        MEASURED: a real run.
    """

    COMPOSED = "composed"
    REPLAYED = "replayed"
    EMULATED = "emulated"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerBytes:
    """Bytes by owner."""

    parameter: ByteCount = 0
    buffer: ByteCount = 0
    gradient: ByteCount = 0
    activation: ByteCount = 0
    optimizer: ByteCount = 0
    input: ByteCount = 0
    temporary: ByteCount = 0

    @property
    def total(self) -> int:
        """Sum over the owners."""
        return sum(getattr(self, owner) for owner in OWNERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of a steady training step.

    Attributes:
        peak_bytes: highest live bytes; on CUDA the value of ``max_memory_allocated()``.
        reserved_bytes: value of ``max_memory_reserved()``; None on a CPU.
        device_bytes: reserved bytes plus the CUDA context, which a budget is compared with. On a
            CPU nothing is reserved, so this is the peak.
        needed_bytes: device bytes with which the step runs, which a budget is compared with: no
            workspace for convolutions. A little more than the device bytes where a cap at these
            would refuse a block. None on a CPU and where it was not computed.
        comfortable_bytes: device bytes with the workspaces that cuDNN may take for convolutions;
            None where they are not known.
        run_peak_bytes: device bytes of the whole run: the highest of loading, first steps,
            evaluation, saving and resuming. None on a CPU and where it was not computed.
        host_bytes: memory of the host for tensors that wait there, and for an optimizer's state.
            A host that runs ahead of its GPU may take more: memory of copies is free only when they
            have ended. None where it was not computed.
        at_peak: live bytes by owner at the moment of the peak.
        max_by_group: highest live bytes of each owner over the step, each at its own moment.
    """

    peak_bytes: ByteCount
    reserved_bytes: ByteCount | None = None
    device_bytes: ByteCount | None = None
    needed_bytes: ByteCount | None = None
    comfortable_bytes: ByteCount | None = None
    run_peak_bytes: ByteCount | None = None
    host_bytes: ByteCount | None = None
    at_peak: OwnerBytes | None = None
    max_by_group: OwnerBytes | None = None

    @property
    def held_bytes(self) -> int:
        """Device bytes, or the peak on a CPU; a measurement has them too."""
        return self.peak_bytes if self.device_bytes is None else self.device_bytes

    @property
    def compared_bytes(self) -> int:
        """Bytes that a budget is compared with.

        These are the cap that a replayed step needs, the device bytes of other rungs, or the peak
        on a CPU.
        """
        return self.held_bytes if self.needed_bytes is None else self.needed_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations per optimizer step. A multiply-add counts as two.

    Attributes:
        forward: forward FLOPs of all micro-batches.
        backward: backward FLOPs of all micro-batches, without recomputation.
        recompute: forward FLOPs repeated in backward.
        optimizer: elementwise FLOPs of the update; None when not counted.
    """

    forward: NonNegativeInt
    backward: NonNegativeInt
    recompute: NonNegativeInt = 0
    optimizer: NonNegativeInt | None = None

    @property
    def total(self) -> int:
        """Sum of the four."""
        return self.forward + self.backward + self.recompute + (self.optimizer or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitReport:
    """One unit of the backbone under the candidate's placement, for one micro-batch.

    Attributes:
        name: module name.
        decision: the placement's decision for the unit; in a composed report of a unit with
            decided parts, the name of its option (``profiler.unit_options``).
        stored_bytes: growth of live bytes over the unit's forward, its output included. Negative
            where the forward frees more than it stores.
        boundary_bytes: size of the unit's output.
        working_bytes: highest live bytes during the unit's backward above the level at its start;
            None where backward does not run through the unit.
        forward_flops: forward FLOPs per micro-batch.
        backward_flops: backward FLOPs per micro-batch.
        recompute_flops: forward FLOPs repeated in backward, per micro-batch.
        forward_seconds: roofline time of the forward on the device; None for an unknown device.
        recompute_seconds: roofline time of the recomputation; None for an unknown device.
    """

    name: Name
    decision: Name
    stored_bytes: ByteGrowth
    boundary_bytes: ByteCount
    working_bytes: ByteGrowth | None
    forward_flops: NonNegativeInt
    backward_flops: NonNegativeInt
    recompute_flops: NonNegativeInt
    forward_seconds: NonNegativeFloat | None = None
    recompute_seconds: NonNegativeFloat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Numbers of parameters."""

    total: NonNegativeInt
    trainable: NonNegativeInt


DeviceKind = Literal["cpu", "cuda"]
"""Kind of a device, in torch's words. Names of devices are those of the device table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLabel:
    """Name and kind of the device that a report is for.

    Attributes:
        name: ``cpu`` or a name in the device table.
        full_name: product name.
        kind: ``cpu`` or ``cuda``.
        memory_bytes: installed memory; None when unknown.
        note: reason for this device when the user did not choose it.
    """

    name: Name
    full_name: Name
    kind: DeviceKind
    memory_bytes: ByteCount | None = None
    note: str = ""


class Origin(StrEnum):
    """Where a predicted time or energy comes from."""

    MEASURED = "measured here"
    FITTED = "fitted on this GPU"
    TRANSFERRED = "transferred from relatives"
    DATA_SHEET = "data sheet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Ratios of measured to predicted that an interval spans.

    Attributes:
        low: ratio at the lower end.
        high: ratio at the upper end.
        coverage: share of measurements left out of the fit that lie inside; None if not known.
    """

    low: float
    high: float
    coverage: float | None = None

    def times(self, other: Spread) -> Spread:
        """Return the spread of a product of independent factors; its coverage was not measured."""
        low = 1.0 - ((1.0 - self.low) ** 2 + (1.0 - other.low) ** 2) ** 0.5
        high = 1.0 + ((self.high - 1.0) ** 2 + (other.high - 1.0) ** 2) ** 0.5
        return Spread(low=max(low, 0.0), high=high)

    def around(self, predicted: float) -> ValueInterval:
        """Return the interval of a prediction."""
        return ValueInterval(
            low=predicted * self.low, high=predicted * self.high, coverage=self.coverage
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueInterval:
    """Interval of a predicted quantity, in its unit.

    Attributes:
        low: lower end.
        high: upper end.
        coverage: share of left-out measurements that such intervals held; None if not known.
    """

    low: NonNegativeFloat
    high: NonNegativeFloat
    coverage: float | None = None

    def times(self, factor: float) -> ValueInterval:
        """Return the interval of a multiple of the quantity."""
        return ValueInterval(low=self.low * factor, high=self.high * factor, coverage=self.coverage)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSaving:
    """A power limit below the one that a prediction is for, and the step under it.

    Attributes:
        watts: power limit.
        step_seconds: predicted time of a step.
        step_seconds_interval: its interval; None if no spread is known.
        energy_joules: predicted energy of a step.
        energy_joules_interval: its interval; None if no spread is known.
    """

    watts: PositiveFloat
    step_seconds: NonNegativeFloat
    step_seconds_interval: ValueInterval | None
    energy_joules: NonNegativeFloat
    energy_joules_interval: ValueInterval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A prediction or a measurement: one candidate on one device.

    Attributes:
        candidate: workload and placement.
        device: device that was predicted for or measured on.
        rung: how far the numbers were checked.
        memory: bytes in a steady step.
        flops: FLOPs per optimizer step; None when a measurement did not count them.
        step_seconds: duration per optimizer step with all its micro-batches.
        energy_joules: energy per optimizer step with all its micro-batches.
        parameters: numbers of parameters.
        units: units in forward order.
        notes: sentences for the reader (uncalibrated time, assumed context, ...).
        details: raw trials and environment, as JSON data.
        step_seconds_origin: source of ``step_seconds``; None if there are none.
        step_seconds_interval: interval of ``step_seconds``; None if no coverage was measured.
        host_decides: whether the kernels of a predicted step end before the host has launched the
            next ones, so that its time is an assumption; None of a measured or unknown time, and of
            devices whose launches are counted with each operation.
        energy_joules_origin: source of ``energy_joules``.
        energy_joules_interval: interval of ``energy_joules``.
        power_limit_watts: power limit that time and energy are for; None for the board's own.
        power_saving: a lower power limit that saves energy for little time; None without one.
    """

    candidate: Candidate
    device: DeviceLabel
    rung: Rung
    memory: Memory
    flops: Flops | None
    step_seconds: NonNegativeFloat | None
    energy_joules: NonNegativeFloat | None
    parameters: Parameters
    units: Annotated[tuple[UnitReport, ...], Meta(max_length=MOST_UNITS)] = ()
    notes: tuple[str, ...] = ()
    details: JsonObject = field(default_factory=dict)
    step_seconds_origin: Origin | None = None
    step_seconds_interval: ValueInterval | None = None
    host_decides: bool | None = None
    energy_joules_origin: Origin | None = None
    energy_joules_interval: ValueInterval | None = None
    power_limit_watts: PositiveFloat | None = None
    power_saving: PowerSaving | None = None

    @property
    def schema(self) -> str:
        """Schema of the JSON object: a measurement never carries the name of a prediction."""
        kind = "measurement" if self.rung is Rung.MEASURED else "prediction"
        return f"budgetplan.{kind}/1"

    def to_json(self) -> dict[str, object]:
        """Return the JSON object of the command-line contract."""
        return {
            "schema": self.schema,
            **self.candidate.to_json(),
            "device": asdict(self.device),
            "rung": self.rung.value,
            "memory": asdict(self.memory),
            "flops": None if self.flops is None else asdict(self.flops),
            "step_seconds": self.step_seconds,
            "step_seconds_origin": self.step_seconds_origin,
            "step_seconds_interval": _interval(self.step_seconds_interval),
            "host_decides": self.host_decides,
            "energy_joules": self.energy_joules,
            "energy_joules_origin": self.energy_joules_origin,
            "energy_joules_interval": _interval(self.energy_joules_interval),
            "power_limit_watts": self.power_limit_watts,
            "power_saving": None if self.power_saving is None else asdict(self.power_saving),
            "parameters": asdict(self.parameters),
            "units": [asdict(unit) for unit in self.units],
            "notes": list(self.notes),
            "details": dict(self.details),
        }

    @classmethod
    def from_json(
        cls, data: object, *, part: str = "report", dropped: list[str] | None = None
    ) -> Self:
        """Read the object that ``to_json`` returns, from a file of unknown origin.

        Args:
            data: JSON object.
            part: name of the object in error messages.
            dropped: see `profiler.json_records.read_record`.

        Raises:
            InputError: the data is not a report.
        """
        given = json_object(data, part=part)
        schema = given.pop("schema", None)
        place = {key: given.pop(key) for key in ("workload", "placement") if key in given}
        candidate = Candidate.from_json(place, part=part, dropped=dropped)
        if given.pop("candidate", None) is not None:  # its parts stand in the object itself
            unknown_field(f"{part}.candidate", dropped)
        report = read_record(cls, {**given, "candidate": candidate}, part=part, dropped=dropped)
        if schema not in (None, report.schema):
            raise InputError(
                f"{part}.schema: expected {report.schema!r} for rung {report.rung.value!r}, "
                f"got {shortened(schema)}"
            )
        return report


def _interval(interval: ValueInterval | None) -> dict[str, object] | None:
    return None if interval is None else asdict(interval)
