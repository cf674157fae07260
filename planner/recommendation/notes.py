"""The notes of an answer: one sentence per fact that limits or explains its numbers.

Notes come from the images, the device, the search, the methods left out, the real runs and the
predictions, in this order. A note of a prediction (an assumed CUDA context, an uncalibrated time)
is written where the prediction is made, and repeated here once, with the backbones, methods or
precisions that it holds for if it does not hold for all candidates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from planner.cost.budget import needed_bytes
from planner.cost.fit_probability import evidence_notes, fit_of
from planner.recommendation.answer import candidate_summary
from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.choose import LONG_RUN_STEPS
from planner.recommendation.request import LeftOut, Request
from planner.search.problem import SearchResult
from planner.workers.real_run import FP16_NOTE, other_limit_note
from profiler.units import format_bytes_as
from profiler.workload import Workload

EVEN_SHARE = 0.8
"""Share of balanced images from which classes count as about equally frequent."""

_SHOWN_FAILURES = 3
"""Reasons of failed trials that are shown, the most frequent first."""


def answer_notes(
    request: Request, found: SearchResult, candidates: Sequence[CheckedCandidate]
) -> tuple[str, ...]:
    """Return the notes of an answer.

    Args:
        request: the request.
        found: the trials of the search.
        candidates: the candidates that passed all checks.
    """
    ran = [candidate for candidate in candidates if candidate.validation is not None]
    return (
        *(() if request.source is None else (str(request.source),)),
        *_imbalance_notes(request),
        *_device_notes(request),
        *_search_notes(found),
        *(note for part in request.backbones for note in _backbone_notes(request, part)),
        *_run_notes(request, ran),
        *_prediction_notes(candidates),
        *_workspace_notes(request, candidates),
        *_limit_notes(request, candidates),
        *_fit_notes(request, candidates),
    )


def _prediction_notes(candidates: Sequence[CheckedCandidate]) -> Iterator[str]:
    """Yield each note of the predictions once, with the candidates that it holds for."""
    holders: dict[str, list[Workload]] = {}
    workloads = [candidate.prediction.candidate.workload for candidate in candidates]
    for candidate, workload in zip(candidates, workloads, strict=True):
        for note in candidate.prediction.notes:
            holders.setdefault(note, []).append(workload)
    for note, having in holders.items():
        yield f"{_scope(having, workloads)}{note}"


def _scope(having: Sequence[Workload], workloads: Sequence[Workload]) -> str:
    """Return the property that tells workloads from the others, such as ``lora, dora: ``.

    The text is empty if they are all workloads, or if no single property separates them.
    """
    others = [workload for workload in workloads if workload not in having]
    for name in ("model", "method", "precision"):
        values = dict.fromkeys(getattr(workload, name) for workload in having)
        rest = dict.fromkeys(getattr(workload, name) for workload in others)
        if others and not values.keys() & rest.keys():
            if len(rest) < len(values):
                return f"all but {', '.join(rest)}: "
            return f"{', '.join(values)}: "
    return ""


def _workspace_notes(request: Request, candidates: Sequence[CheckedCandidate]) -> Iterator[str]:
    """Yield what the plans need more with cuDNN's workspaces for convolutions."""
    if request.device.kind != "cuda":
        return
    memories = [candidate.prediction.memory for candidate in candidates]
    known = [m.comfortable_bytes - m.compared_bytes for m in memories if m.comfortable_bytes]
    if most := max(known, default=0):
        unknown = "; in 16 bits that is not known" if len(known) < len(memories) else ""
        yield (
            "with cuDNN's workspaces the plans need up to "
            f"{format_bytes_as(most, request.budget_bytes)} more (fitted on others' runs){unknown}"
        )
    elif len(known) < len(memories):
        yield "what the plans need more with cuDNN's workspaces is not known in 16 bits"


def _limit_notes(request: Request, candidates: Sequence[CheckedCandidate]) -> Iterator[str]:
    limits = request.limits
    is_timed = all(each.prediction.step_seconds is not None for each in candidates)
    if not is_timed and (limits.max_hours is not None or limits.max_kwh is not None):
        yield (
            "the limits of time and energy were checked without levers, because the time with "
            "the chosen ones is not predicted"
        )


def _fit_notes(request: Request, candidates: Sequence[CheckedCandidate]) -> Iterator[str]:
    """Yield the evidence for the probabilities of fitting, and its limits."""
    found = [fit_of(c.prediction, request.budget_bytes, risk=request.risk) for c in candidates]
    yield from evidence_notes(found)


def _backbone_notes(request: Request, part: Request) -> Iterator[str]:
    """Yield the notes on one backbone of a request, with its name if there are several."""
    name = f"{part.space.base.model}: " if request.others else ""
    for note in (*_left_out_notes(part.left_out), *part.image_notes, *part.weight_notes):
        yield f"{name}{note}"


def _imbalance_notes(request: Request) -> Iterator[str]:
    counts = request.images_per_class
    if counts and request.balanced_images < EVEN_SHARE * sum(counts):
        yield (
            f"classes have {min(counts)} to {max(counts)} training images: the choice of a method "
            f"counts them as {request.balanced_images} images of a balanced data set"
        )


def _device_notes(request: Request) -> Iterator[str]:
    device, installed_bytes = request.device, request.device.memory_bytes
    if device.note:
        yield device.note
    if installed_bytes is not None and request.budget_bytes > installed_bytes:
        budget, installed = (
            format_bytes_as(size, request.budget_bytes)
            for size in (request.budget_bytes, installed_bytes)
        )
        yield f"the budget of {budget} is more than the {installed} of {device.full_name}"


def _search_notes(found: SearchResult) -> Iterator[str]:
    if found.stopped is not None:
        yield f"the search ended early: {found.stopped}"
    if found.cost_unit == "seconds":
        yield "the power of this device is not known, so the search minimized time, not energy"
    for reason, count in Counter(found.failures).most_common(_SHOWN_FAILURES):
        yield f"{count} of {found.trials} trials were left out: {reason}"


def _left_out_notes(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """Yield one note per reason."""
    names_by_reason: dict[str, list[str]] = {}
    for item in left_out:
        names_by_reason.setdefault(item.reason, []).append(item.name)
    for reason, names in names_by_reason.items():
        yield f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} left out: {reason}"


def _run_notes(request: Request, ran: Sequence[CheckedCandidate]) -> Iterator[str]:
    if any(candidate.host_prediction is not None for candidate in ran):
        where = "workers with a CPU" if request.uses_workers else "the CPU"
        yield (
            f"the runs were on {where}, because this machine has no such GPU: memory, time and "
            "energy on the GPU are predicted"
        )
    fp16 = [c for c in ran if c.validation is not None and FP16_NOTE in c.validation.notes]
    if fp16:
        yield FP16_NOTE
    limits = (other_limit_note(c.prediction, c.validation) for c in ran if c.validation is not None)
    yield from dict.fromkeys(note for note in limits if note is not None)
    models = {candidate.candidate.workload.model for candidate in ran}
    if not all(request.of_backbone(model).has_weights for model in models):
        yield _random_weights_note(may_download=request.run.pretrained)
    elif not ran:
        yield from _missing_weights_note(request)
    steps = [len(c.validation.losses) for c in ran if c.validation is not None]
    if steps and max(steps) < LONG_RUN_STEPS:
        yield (
            f"an accuracy after {_number_range(steps)} steps, and a NetScore computed from it, "
            "show that training works, not how accurate the model becomes"
        )
    for candidate in ran:
        yield from _deviations(request, candidate)


def _missing_weights_note(request: Request) -> Iterator[str]:
    """Yield a note on pretrained weights that cannot be loaded, where nothing was run."""
    parts = [p for p in request.backbones if p.trains_pretrained and not p.has_weights]
    if parts:
        names = ", ".join(part.space.base.model for part in parts)
        yield (
            f"no pretrained weights of {names} can be loaded here, and the plans are for such: "
            "`train` takes random ones and their recipe unless --weights FILE names some"
        )


def _random_weights_note(*, may_download: bool) -> str:
    if not may_download:
        return "the runs began with random weights: no accuracy here is that of a pretrained model"
    return (
        "the runs began with random weights, because no pretrained ones can be loaded here: no "
        "accuracy here is that of a pretrained model; methods are ordered as for pretrained "
        "weights, and with --no-pretrained as for random ones"
    )


def _number_range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _deviations(request: Request, candidate: CheckedCandidate) -> Iterator[str]:
    """Yield a note for each measured number of a run that exceeds its prediction or the budget."""
    assert candidate.validation is not None
    expected = candidate.host_prediction or candidate.prediction
    # A run on the CPU in place of the GPU is not held to the GPU's budget.
    needed = needed_bytes(candidate.validation.report)
    budget_bytes = request.budget_bytes if candidate.host_prediction is None else needed
    for finding in candidate.validation.findings(expected, budget_bytes=budget_bytes):
        yield f"{candidate_summary(candidate.candidate)}: {finding}"
