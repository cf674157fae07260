"""Plans as the tests of training need them."""

from __future__ import annotations

from planner.plan import Accuracy, Plan
from profiler.models.parameter_count import count_parameters
from profiler.placement import Placement
from profiler.records import DeviceLabel, Memory, Report, Rung
from profiler.workload import Candidate, Workload


def make_plan(workload: Workload, placement: Placement | None = None) -> Plan:
    candidate = Candidate(workload=workload, placement=placement or Placement())
    return Plan(
        candidate=candidate,
        prediction=Report(
            candidate=candidate,
            device=DeviceLabel(name="cpu", full_name="CPU", kind="cpu"),
            rung=Rung.COMPOSED,
            memory=Memory(peak_bytes=1),
            flops=None,
            step_seconds=None,
            energy_joules=None,
            parameters=count_parameters(workload),
        ),
        accuracy=Accuracy(value=None, source="not run", kind="none"),
        budget_bytes=10**9,
    )
