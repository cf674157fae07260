"""The rehearsal stage: runs the rows of the answer through PyTorch's CUDA code without a GPU.

It takes place where the planned GPU is not in this machine and real runs are requested. A row that
fails on the emulated GPU, or runs out of memory there under the budget, is dropped. Where no GPU
can be emulated, or the memory of this machine does not suffice for a row, the rows stay as they
are, and a note says so: the real runs on the CPU are then the only check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.recommendation.answer import candidate_summary
from planner.recommendation.checks import CheckedCandidate, CheckOutcome
from planner.recommendation.recipes import plan_recipe
from planner.recommendation.request import Notify, Request
from profiler.errors import DeviceError, MeasurementError
from profiler.records import Report


def rehearse_front(
    request: Request, candidates: Sequence[CheckedCandidate], notify: Notify
) -> CheckOutcome:
    """Rehearse every candidate and drop those that fail.

    Args:
        request: the request.
        candidates: candidates that passed the replay.
        notify: called with (stage, current work, fraction of the stage done).

    Raises:
        MeasurementError: every rehearsal failed.
    """
    from planner.training.rehearsal import NotRehearsedError, Rehearsal, rehearse_all
    from profiler.devices.table import device_spec
    from profiler.running.emulated.libraries import why_not_emulated

    device = device_spec(request.device.name)
    unchanged = CheckOutcome(passed=tuple(candidates), dropped=())
    if request.validations == 0 or request.runs_on != "cpu" or not device.is_cuda:
        return unchanged
    reason = why_not_emulated()
    try:
        if reason:
            raise DeviceError(reason)
        outcomes = rehearse_all(
            [
                Rehearsal(
                    candidate=each.candidate,
                    recipe=plan_recipe(request, each.candidate.workload),
                    budget_bytes=request.budget_bytes,
                )
                for each in candidates
            ],
            device,
            on_progress=lambda text, fraction: notify("rehearse", text, fraction),
        )
    except (DeviceError, MeasurementError) as error:
        return replace(unchanged, notes=(f"nothing was rehearsed on an emulated GPU: {error}",))
    passed, dropped, notes = list[CheckedCandidate](), list[str](), list[str]()
    for each, found in zip(candidates, outcomes, strict=True):
        if isinstance(found, Report):
            passed.append(replace(each, rehearsal=found))
            continue
        sentence = (
            f"{candidate_summary(each.candidate)}: on an emulated {device.full_name}, {found}"
        )
        if isinstance(found, NotRehearsedError):
            passed.append(each)
            notes.append(sentence)
        else:
            dropped.append(sentence)
    if not passed:
        raise MeasurementError(dropped[0])
    return CheckOutcome(passed=tuple(passed), dropped=tuple(dropped), notes=tuple(notes))
