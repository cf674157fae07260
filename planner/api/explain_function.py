"""The function behind ``budgetplan explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.api.arguments import no_progress
from planner.api.plan_functions import load_plan

if TYPE_CHECKING:
    from planner.plan import Plan
    from planner.recommendation.explain import Explanation
    from planner.recommendation.request import Notify


def explain(plan: Plan | str | Path, *, on_progress: Notify | None = None) -> Explanation:
    """Return the use of a plan's memory, and the effect of each of its choices.

    Args:
        plan: plan, or the path of a plan file.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        InputError: the file is no plan, or the plan does not fit this installation.
        UnknownNameError: the plan is for a device that the table lacks.
    """
    content = load_plan(plan) if isinstance(plan, str | Path) else plan
    from planner.recommendation.explain import explain_plan
    from planner.training.plan_check import check_against_model
    from profiler.devices.table import device_spec

    notify = on_progress or no_progress
    device = device_spec(content.prediction.device.name)
    check_against_model(content)
    return explain_plan(content, device, notify=lambda text, done: notify("explain", text, done))
