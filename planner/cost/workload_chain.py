"""The placement problem of a workload: a ``Chain`` from the costs of its units."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from planner.cost.unit_costs import UnitCosts
from planner.placement.chain import Chain, ChainOption, ChainUnit
from profiler.arrays import Floats
from profiler.placement import Decision
from profiler.unit_options import KEPT, PartsByUnit, UnitOption

HEAD = "(head and loss)"
"""Name of the last unit of every chain, classifier and loss. It has the single option ``keep``."""


def workload_chain(
    costs: UnitCosts,
    options: tuple[UnitOption, ...],
    units: PartsByUnit,
    *,
    boundary_bytes: Floats,
    workspace_bytes: int,
) -> Chain:
    """Return the chain of a workload, with its head as the last unit.

    A chain has no notion of bytes that stay live until the last forward has ended (``cached``).
    They are therefore added to ``forward_bytes`` of every later unit, at the most that any option
    of the earlier units caches. This overestimates placements that cache less.

    Args:
        costs: costs of every unit and option.
        options: unit options to include, among them ``keep``.
        units: branches and layers of every unit, in forward order.
        boundary_bytes: [units] size of each unit's output.
        workspace_bytes: cuBLAS workspaces of the device.
    """
    most_cached = np.max([costs.cached[option] for option in options], axis=0)
    cached = np.cumsum([0.0, *most_cached])
    chain_units = []
    for index, (name, parts) in enumerate(units.items()):
        chain_options = tuple(
            _chain_option(costs, option, index, decisions, cached=float(cached[index]))
            for option in options
            if (decisions := option.decisions(name, parts)) or option == KEPT
        )
        chain_units.append(
            ChainUnit(
                name=name,
                options=chain_options,
                gradient_bytes=round(float(costs.gradients[index])),
                boundary_bytes=round(float(boundary_bytes[index])),
                forward_seconds=float(costs.forward_seconds[index]),
            )
        )
    return Chain(
        units=(*_with_segment_borders(chain_units), _head_unit(costs, float(cached[-1]))),
        static_bytes=math.ceil(costs.base_bytes) + workspace_bytes,
        floor_bytes=math.ceil(costs.floor_bytes) + workspace_bytes,
    )


def _chain_option(
    costs: UnitCosts,
    option: UnitOption,
    index: int,
    decisions: Mapping[str, Decision],
    *,
    cached: float,
) -> ChainOption:
    return ChainOption(
        decision=next((d for name, d in decisions.items() if "/" not in name), Decision.KEEP),
        stored_bytes=round(float(costs.stored[option][index])),
        forward_bytes=math.ceil(float(costs.forward[option][index]) + cached),
        backward_bytes=max(0, math.ceil(float(costs.backward[option][index]))),
        recompute_seconds=max(0.0, float(costs.recompute_seconds(option)[index])),
        parts={u.partition("/")[2]: d for u, d in decisions.items() if "/" in u},
    )


def _head_unit(costs: UnitCosts, cached: float) -> ChainUnit:
    option = ChainOption(
        decision=Decision.KEEP,
        stored_bytes=0,
        forward_bytes=math.ceil(costs.head_bytes[KEPT] + cached),
        backward_bytes=0,
        recompute_seconds=0.0,
    )
    gradient_bytes = round(float(costs.gradients[-1]))
    return ChainUnit(name=HEAD, options=(option,), gradient_bytes=gradient_bytes)


def _with_segment_borders(units: list[ChainUnit]) -> list[ChainUnit]:
    """Set ``may_continue_segment`` of every unit.

    A segment of two units frees the tensor between them only if nothing else refers to it:

    - Both must run in one loop, the same ``nn.Sequential``. The argument of another module's call
      stays in a variable of the caller until the call returns.
    - The earlier unit must store its output alone when it is recomputed. The first unit of a loop
      may store its input too.
    """
    bordered = units[:1]
    for before, unit in itertools.pairwise(units):
        plain, output = before.plain_index(Decision.RECOMPUTE), before.boundary_bytes or 0
        # 1 %: rounding of stored bytes, and small tensors beside the output
        only_output = plain is not None and before.options[plain].stored_bytes <= output * 1.01
        one_loop = before.name.rpartition(".")[0] == unit.name.rpartition(".")[0]
        bordered.append(replace(unit, may_continue_segment=one_loop and only_output))
    return bordered
