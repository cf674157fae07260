"""The function behind ``budgetplan check``: whether a plan holds under the installed versions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.api.plan_functions import plan_of, planned_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.plan import FitProbability, Plan
    from profiler.devices.table import DeviceSpec
    from profiler.errors import InfeasibleError

CHECK_SCHEMA = "budgetplan.check/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCheck:
    """A plan, replayed anew under the installed versions.

    Attributes:
        budget_bytes: device bytes of the plan's budget.
        planned_bytes: device bytes that the plan predicts.
        needed_bytes: device bytes that are predicted now.
        holds: whether the plan still fits its budget, with at most the risk that it was made with.
        smallest_budget_bytes: smallest budget that it fits at that risk.
        fits: probability that the training fits the budget; None if it is not known.
        changed_versions: package to its version in the plan and the installed one, where the two
            differ.
    """

    budget_bytes: int
    planned_bytes: int
    needed_bytes: int
    holds: bool
    smallest_budget_bytes: int
    fits: FitProbability | None
    changed_versions: Mapping[str, tuple[str, str]]

    def excess(self) -> InfeasibleError | None:
        """Return the error of a plan that no longer fits."""
        from profiler.errors import InfeasibleError
        from profiler.units import DeviceBytes

        if self.holds:
            return None
        return InfeasibleError(
            budget_bytes=DeviceBytes(self.budget_bytes),
            smallest_bytes=DeviceBytes(self.smallest_budget_bytes),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        fits = None if self.fits is None else self.fits.to_json()
        return {"schema": CHECK_SCHEMA, **asdict(self), "fits": fits}


def check(plan: Plan | str | Path, *, device: str | DeviceSpec = "auto") -> PlanCheck:
    """Replay a plan under the installed versions and compare it with its budget.

    Args:
        plan: plan, or the path of a plan file.
        device: device to predict for; ``auto`` for the plan's.

    Raises:
        InputError: the plan cannot be read, or does not fit the installed model.
        UnknownNameError: the device table lacks the device.
    """
    from planner.cost.budget import needed_bytes
    from planner.cost.fit_probability import (
        fit_of,
        fits_within,
        planned_risk,
        smallest_budget_of,
    )
    from planner.plan import versions
    from planner.training.plan_check import check_against_model
    from profiler.prediction.report import predict

    content = plan_of(plan)
    spec = planned_spec(content, device)
    check_against_model(content)
    made_with = content.provenance.get("versions")
    before = dict(made_with) if isinstance(made_with, dict) else {}
    report, risk = predict(content.candidate, device=spec), planned_risk(content)
    return PlanCheck(
        budget_bytes=content.budget_bytes,
        planned_bytes=needed_bytes(content.prediction),
        needed_bytes=needed_bytes(report),
        holds=fits_within(report, content.budget_bytes, risk=risk),
        smallest_budget_bytes=smallest_budget_of(report, risk=risk),
        fits=fit_of(report, content.budget_bytes, risk=risk),
        changed_versions={
            name: (str(before[name]), installed)
            for name, installed in versions().items()
            if name in before and before[name] != installed
        },
    )
