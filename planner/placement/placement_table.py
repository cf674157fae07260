"""A placement unit by unit: stored and freed bytes, recompute time, and the unit at the peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.placement.chain import JOINED, Chain, check_indices
from planner.placement.chain_cost import live_bytes, unit_seconds_many
from profiler.placement import Decision
from profiler.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRow:
    """One unit of a placement.

    Attributes:
        unit: name of the unit.
        decision: decision and parts as text.
        stored_bytes: bytes stored for backward.
        freed_bytes: stored bytes of the default option minus ``stored_bytes``.
        recompute_seconds: time that recomputing the unit adds to the step.
        seconds_per_freed_mib: recompute seconds per freed MiB; None if nothing is freed.
        forward_bytes: live bytes of the whole step during the unit's forward.
        backward_bytes: live bytes of the whole step during the unit's backward.
        binding: phase in which the unit reaches the peak of the step; None for all other units.
    """

    unit: str
    decision: str
    stored_bytes: int
    freed_bytes: int
    recompute_seconds: float
    seconds_per_freed_mib: float | None
    forward_bytes: int
    backward_bytes: int
    binding: Literal["forward", "backward"] | None


def placement_table(chain: Chain, indices: Sequence[int]) -> tuple[PlacementRow, ...]:
    """Return one row per unit."""
    checked = check_indices(chain, indices)
    forward, backward = (live[0].tolist() for live in live_bytes(chain, checked))
    seconds = unit_seconds_many(chain, checked)[0].tolist()
    peak = max(*forward, *backward, chain.floor_bytes)
    rows = []
    for i, (unit, index) in enumerate(zip(chain.units, indices, strict=True)):
        stored = _stored_bytes(chain, indices, i)
        freed = unit.options[unit.default_index].stored_bytes - stored
        phase: Literal["forward", "backward"] = "forward" if forward[i] == peak else "backward"
        rows.append(
            PlacementRow(
                unit=unit.name,
                decision=Decision.SEGMENT if index == JOINED else unit.options[index].label,
                stored_bytes=stored,
                freed_bytes=freed,
                recompute_seconds=seconds[i],
                seconds_per_freed_mib=seconds[i] / (freed / MIB) if freed > 0 else None,
                forward_bytes=forward[i],
                backward_bytes=backward[i],
                binding=phase if peak in {forward[i], backward[i]} else None,
            )
        )
    return tuple(rows)


def _stored_bytes(chain: Chain, indices: Sequence[int], i: int) -> int:
    """Return the bytes that unit i stores; inside a segment only the last unit stores any."""
    unit, index = chain.units[i], indices[i]
    if i + 1 < len(indices) and indices[i + 1] == JOINED:
        return 0
    if index == JOINED:
        return unit.boundary_bytes or 0
    return unit.options[index].stored_bytes
