"""Builds an entry of the front: the plan of a checked candidate with its accuracy and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.cost.fit_probability import fit_of
from planner.plan import Accuracy, Plan, plan_file_name
from planner.recommendation.after_probe import accuracy_expected
from planner.recommendation.answer import FrontEntry
from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.choose import is_long_run
from planner.recommendation.compare_scores import SCORED_KINDS
from planner.recommendation.probe_front import ProbeOutcome, final_recipe
from planner.recommendation.provenance import plan_provenance
from planner.recommendation.request import Request
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.scoring.netscore import LOWEST_ACCURACY, Scores, compute_scores
from planner.search.problem import SearchResult
from profiler.records import Report
from profiler.units import MIB

if TYPE_CHECKING:
    from planner.training.validation import Validation


def build_entry(
    request: Request,
    found: SearchResult,
    checked: CheckedCandidate,
    probe: ProbeOutcome | None = None,
) -> FrontEntry:
    """Return the entry of a candidate that passed the checks.

    Args:
        request: the request.
        found: the trials of the search.
        checked: the candidate.
        probe: short trainings of the front; None without any.
    """
    expected = accuracy_expected(request, probe, checked.result.candidate.workload)
    workload = checked.candidate.workload
    validation = checked.validation
    accuracy = accuracy_after_run(_accuracy_of(expected), validation)
    plan = Plan(
        candidate=checked.candidate,
        prediction=checked.prediction,
        measurement=None if validation is None else validation.report,
        scores=plan_scores(accuracy, checked.prediction, validation),
        accuracy=accuracy,
        budget_bytes=request.budget_bytes,
        rehearsal=checked.rehearsal,
        fits=fit_of(checked.prediction, request.budget_bytes, risk=request.risk),
        recipe=final_recipe(request, probe, workload),
        provenance=plan_provenance(request, found, checked, expected),
    )
    return FrontEntry(
        plan=plan,
        file=request.out / plan_file_name(checked.candidate, with_model=bool(request.others)),
        result=checked.replayed_result,
        expected=expected,
        validation=validation,
        host_prediction=checked.host_prediction,
    )


def _accuracy_of(expected: AccuracyEstimate) -> Accuracy:
    if expected.value is None or expected.kind is None:
        return Accuracy(value=None, source=expected.reason, kind="none")
    return Accuracy(
        value=expected.value,
        source=f"{expected.reason} ({expected.source})",
        kind=expected.kind,
        low=expected.low,
        high=expected.high,
        coverage=expected.coverage,
    )


def accuracy_after_run(accuracy: Accuracy, validation: Validation | None) -> Accuracy:
    """Return the accuracy of a plan after a real run.

    A few steps show that training works, and nothing about the accuracy of the whole training, so
    they replace no known accuracy. A long run from pretrained weights replaces a published accuracy
    and a derived one, but not that of a probe, which trained by the plan's recipe. The reading of
    every run is in the provenance.

    Args:
        accuracy: accuracy of the plan before.
        validation: the real run; None if there was none.
    """
    if validation is None:
        return accuracy
    if accuracy.kind in ("none", "measured"):
        return validation.accuracy
    # No accuracy of training from random weights is published.
    replaces = is_long_run(validation) and validation.weights.kind != "random"
    return validation.accuracy if replaces and accuracy.kind != "probe" else accuracy


def plan_scores(
    accuracy: Accuracy, prediction: Report, validation: Validation | None
) -> Scores | None:
    """Return the scores that the known numbers allow.

    None without an accuracy above 1 % that was measured or published.
    """
    if accuracy.value is None or accuracy.value <= LOWEST_ACCURACY:
        return None
    if accuracy.kind not in SCORED_KINDS:
        return None
    flops, images = prediction.flops, prediction.candidate.workload.effective_batch
    forward = None if flops is None else flops.forward / images
    seconds = watts = peak_mib = None
    if validation is not None:
        seconds, watts = validation.inference_seconds, validation.inference_watts
        peak_mib = validation.inference_peak_bytes / MIB
    return compute_scores(
        accuracy_percent=100 * accuracy.value,
        parameters=prediction.parameters.total,
        macs=None if forward is None else forward / 2,
        flops=forward,
        inference_seconds=seconds,
        inference_watts=watts,
        inference_peak_mib=peak_mib,
        trainable_parameters=prediction.parameters.trainable,
    )
