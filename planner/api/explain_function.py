"""The function behind ``budgetplan explain``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.api.arguments import no_progress, optional_size
from planner.api.plan_functions import plan_of, planned_spec

if TYPE_CHECKING:
    from planner.plan import Plan
    from planner.recommendation.explain import Explanation
    from planner.recommendation.request import Notify
    from profiler.devices.table import DeviceSpec


def explain(
    plan: Plan | str | Path,
    *,
    device: str | DeviceSpec = "auto",
    vram: int | str | None = None,
    on_progress: Notify | None = None,
) -> Explanation:
    """Return the use of a plan's memory, and the effect of each of its choices.

    Args:
        plan: plan, or the path of a plan file.
        device: device to predict for; ``auto`` for the plan's.
        vram: budget in bytes or as text to compare with; None for that of the plan.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        InputError: the file is no plan, or the plan does not fit this installation.
        UnknownNameError: the table lacks the device.
    """
    budget_bytes = optional_size(vram)
    content = plan_of(plan)
    if budget_bytes is not None:
        content = replace(content, budget_bytes=budget_bytes)
    from planner.recommendation.explain import explain_plan
    from planner.training.plan_check import check_against_model

    notify = on_progress or no_progress
    spec = planned_spec(content, device)
    check_against_model(content)
    return explain_plan(content, spec, notify=lambda text, done: notify("explain", text, done))
