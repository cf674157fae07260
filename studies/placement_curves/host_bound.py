"""What no recomputation of whole operators could beat on this CPU, at the paper's 43 %.

The program of ``bound.py`` with the planner's rates of this processor in place of the evaluator's:
of `optimal`, of the rule and of the bound the predicted times are held against each other, each in
the rule's peak. Where the bound is above half of the rule, half cannot be had. What a kernel needs
besides its tensors is left out, and batch normalisation costs what it does with its statistics
given, as a second run has them: both make the bound lower. MobileNetV2 is left out as there.
"""

from __future__ import annotations

import rows
import torch
from arms import SLACK, WORKLOADS, Arm, Arms
from bound import SERVED_OTHERWISE, Bound, Tracer, traced
from rule import OPERATING_POINTS, best_adaptive

from profiler.models.parameter_count import count_parameters
from profiler.operations import bytes_in, only_allocates, only_views, operation_kind, read_arguments
from profiler.placement import KEEP_ALL
from profiler.replay.flops import operation_flops
from profiler.timing.cpu_rates import cpu_rates
from profiler.timing.roofline import Rates
from profiler.workload import Workload

SHARE, _ = OPERATING_POINTS
_STATE_BYTES = 8
"""Of AdamW for each parameter that learns: it is there before the step and after it."""
_GIVEN = {"aten::native_batch_norm": "aten::native_batch_norm, given statistics"}


class CpuTracer(Tracer):
    """Prices operators as the planner does on this processor."""

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self._rates = rates

    def milliseconds(self, func, args, kwargs, out, *, estimated: float) -> float:
        """Return what running the operator again takes."""
        if only_allocates(func) or only_views(func):
            return 0.0
        flops = operation_flops(func, args, kwargs, out)
        moved = bytes_in(read_arguments(func, args)) + bytes_in(out)
        kind = operation_kind(func, args)
        slowness = self._rates.slowness_of([_GIVEN.get(kind, kind)])
        return 1e3 * float(self._rates.seconds(flops, moved, slowness=slowness)[0])


def _row(name: str, workload: Workload) -> Arm:
    arms = Arms(workload)
    rule = best_adaptive(arms.chain, arms.full, int(SHARE * arms.full))
    budget = int(arms.predicted(rule) * SLACK)
    ours = arms.optimal(budget)
    bound = Bound(traced(workload, CpuTracer(cpu_rates(workload))))
    state = _STATE_BYTES * count_parameters(workload).trainable
    least = bound.least_milliseconds(budget - state)
    kept = arms.step_seconds(KEEP_ALL)
    return {
        "workload_name": name,
        "budget_bytes": budget,
        "rule_predicted_share": arms.step_seconds(rule) / kept - 1,
        "optimal_predicted_share": None if ours is None else arms.step_seconds(ours) / kept - 1,
        "bound_share": None if least is None else least / 1e3 / kept,
    }


def run(names: list[str]) -> None:
    """Add the bound of the workloads that have none yet."""
    torch.set_num_threads(1)
    known = {row["workload_name"] for row in rows.read("host_bound")}
    for name, workload in WORKLOADS.items():
        wanted = not names or any(name.startswith(each) for each in names)
        if not wanted or name in known or workload.model in SERVED_OTHERWISE:
            continue
        row = _row(name, workload)
        rows.append("host_bound", row)
        print(row, flush=True)
