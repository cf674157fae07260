"""Predicted effects of levers on the time of a step.

Each effect is a ratio: seconds of a step with the lever over those without, with an interval. It is
computed from the kernels of a replay without levers:

    channels_last  factors fitted to published runs of the same models on an RTX 3090; the interval
                   is that of model families left out of the fit
    fused          the kernels of the fused update in place of the update's; not measured
    tf32           matrix products at the data sheet's rate of TF32; not measured

Nothing is predicted of ``cudnn_benchmark`` and ``compile``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from profiler.devices.table import DeviceSpec
from profiler.errors import UsageError
from profiler.prediction.report import can_time, step_seconds
from profiler.records import Spread, ValueInterval
from profiler.replay.event_log import EventLog, Phase
from profiler.timing.lever_factors import can_gain, layout_spread
from profiler.timing.rates import rates
from profiler.workload import FUSED_OPTIMIZERS, Candidate, Lever, Workload

PREDICTED_LEVERS: tuple[Lever, ...] = ("channels_last", "fused", "tf32")

ASSUMED_GAIN = Spread(low=0.5, high=1.5)
"""Ratios of true to predicted gain of a lever that no published run measures: an assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeverEffect:
    """Predicted effect of a lever.

    Attributes:
        lever: the lever.
        seconds_ratio: seconds of a step with the lever over those without.
        interval: interval of the ratio.
        source: where the ratio comes from.
    """

    lever: Lever
    seconds_ratio: float
    interval: ValueInterval
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object for a plan's provenance."""
        return asdict(self)


def lever_effects(
    candidate: Candidate,
    log: EventLog,
    *,
    device: DeviceSpec,
    levers: Collection[Lever],
    power_limit_watts: float | None = None,
) -> tuple[LeverEffect, ...]:
    """Return the effects of levers, where a candidate allows the lever and an effect is predicted.

    Args:
        candidate: candidate without levers.
        log: its replay.
        device: the device; no effect is predicted on a CPU.
        levers: levers to consider.
        power_limit_watts: power limit of the GPU; None for the board's own.
    """
    if not device.is_cuda:
        return ()
    workload = candidate.workload
    roofline = rates(device, workload, power_limit_watts=power_limit_watts)
    if roofline is None:
        return ()
    base = step_seconds(log, roofline, workload)
    found = []
    for lever in PREDICTED_LEVERS:
        if lever not in levers or not can_gain(device, lever):
            continue
        changed = _with_lever(workload, lever)
        if changed is None:
            continue
        used = log if lever != "fused" else _with_fused_update(candidate, changed, log, device)
        kernels = rates(device, changed, power_limit_watts=power_limit_watts)
        if used is None or kernels is None or not can_time(used, changed, kernels):
            continue
        ratio = step_seconds(used, kernels, changed) / base
        found.append(effect_of(lever, ratio))
    return tuple(found)


def effect_of(lever: Lever, ratio: float) -> LeverEffect:
    """Return the effect of a lever, with its interval, for a predicted ratio of seconds."""
    if lever == "channels_last":
        return LeverEffect(
            lever=lever,
            seconds_ratio=ratio,
            # without a kernel that gains, the ratio is 1 by definition
            interval=layout_spread().around(ratio) if ratio != 1 else _exactly(1.0),
            source="kernel factors fitted to published runs on an RTX 3090",
        )
    gain = ASSUMED_GAIN.around(max(0.0, 1.0 - ratio))
    return LeverEffect(
        lever=lever,
        seconds_ratio=ratio,
        interval=ValueInterval(low=max(0.0, 1.0 - gain.high), high=max(ratio, 1.0 - gain.low)),
        source="fewer kernels and bytes in the replayed update; not measured"
        if lever == "fused"
        else "data sheet's rate of TF32; not measured",
    )


def _exactly(value: float) -> ValueInterval:
    return ValueInterval(low=value, high=value)


def _with_lever(workload: Workload, lever: Lever) -> Workload | None:
    """Return a workload with a lever; None if it does not allow the lever."""
    if lever == "fused" and workload.optimizer not in FUSED_OPTIMIZERS:
        return None
    if lever == "tf32" and workload.precision != "fp32":
        return None
    return workload.replace(levers=(*workload.levers, lever))


def _with_fused_update(
    candidate: Candidate, changed: Workload, log: EventLog, device: DeviceSpec
) -> EventLog | None:
    """Return a log with the kernels of the fused update; None if the method has no such update."""
    from profiler.replay.step_replay import replay_update

    try:
        update = replay_update(replace(candidate, workload=changed), device=device)
    except UsageError:
        return None
    kept = [op for op in log.operations if op.phase != Phase.OPTIMIZER]
    fused = [op for op in update.operations if op.phase == Phase.OPTIMIZER]
    return replace(log, operations=(*kept, *fused))


__all__ = ["PREDICTED_LEVERS", "LeverEffect", "can_gain", "effect_of", "lever_effects"]
