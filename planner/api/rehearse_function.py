"""The function behind ``budgetplan rehearse``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.api.arguments import no_progress
from planner.api.plan_functions import plan_of, planned_spec
from profiler.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from planner.plan import Plan
    from planner.recommendation.request import Notify
    from profiler.devices.table import DeviceSpec


def rehearse(
    plan: Plan | str | Path,
    *,
    device: str | DeviceSpec = "auto",
    steps: int | None = None,
    out: str | Path | None = None,
    on_progress: Notify | None = None,
) -> Plan:
    """Run a plan's training on an emulated GPU and return the plan with the rehearsal.

    PyTorch's own CUDA code runs, with its allocator, on a device whose kernels do nothing. So a
    machine without the planned GPU shows whether the training runs there to its end, and how much
    memory it reserves. There is no time and no accuracy.

    Args:
        plan: plan, or the path of a plan file.
        device: GPU of the device table to emulate; ``auto`` for the plan's.
        steps: optimizer steps before the evaluation; None for a few.
        out: file for the plan with its rehearsal; None to write none. Only a plan for the same
            candidate is replaced.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UsageError: the device is no GPU.
        InputError: the plan does not fit the model.
        DeviceError: no compiler, or a PyTorch without CUDA.
        OutOfMemoryError: the run needs more than the plan's budget.
        MeasurementError: the run fails on this GPU.
    """
    from planner.disk.drafts import remove_draft_files
    from planner.disk.free_space import check_folder
    from planner.plan import check_replaceable, write_plan
    from planner.training.rehearsal import REHEARSAL_STEPS
    from planner.training.rehearsal import rehearse as run
    from profiler.running.emulated.libraries import why_not_emulated

    content = plan_of(plan)
    spec = planned_spec(content, device)
    if not spec.is_cuda:
        raise UsageError(
            f"a rehearsal emulates a GPU, and {spec.name} is none; name a GPU by --device"
        )
    reason = why_not_emulated()
    if reason:
        raise DeviceError(reason)
    if out is not None:
        check_folder(Path(out).parent)
        remove_draft_files(Path(out).parent)
        check_replaceable(Path(out), content)
    from planner.training.plan_check import check_against_model

    notify = on_progress or no_progress
    check_against_model(content)
    report = run(
        content,
        spec,
        steps=steps or REHEARSAL_STEPS,
        on_progress=lambda text, fraction: notify("rehearse", text, fraction),
    )
    rehearsed = replace(content, rehearsal=report)
    if out is not None:
        write_plan(rehearsed, Path(out))
    return rehearsed
