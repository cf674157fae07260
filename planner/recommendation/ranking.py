"""Ranks candidates within the budget: by expected accuracy, then by time and energy.

    best_of             the candidate to recommend
    best_configuration  the best of a method: rank, micro-batch, precision, checkpointing
    equals_of           the candidates that are expected to be as accurate as the best

The rules, in this order:

1. Candidates of the highest accuracy score are expected to be equally accurate; others are out.
2. Memory within the budget is no cost. A candidate above ``EDGE`` of the budget is taken only if no
   other is left, because another program's few megabytes would end its training.
3. Of the configurations of a method, the rank nearest to the published default is taken. Among
   those within ``WORTHWHILE`` of the least cost, and of these within as much of the least time, the
   one without checkpointing that needs the least memory is taken.
4. Of equally accurate methods, the one compared most often and best known is taken. ``full`` yields
   to a method that costs ``WORTHWHILE`` less. Any other yields only to one that costs
   ``KNOWN_SAVING`` less, was compared as often, and was in no comparison clearly below it.

With the objective ``time`` or ``energy``, rule 4 takes the least cost. With ``accuracy``, it takes
the highest mean effect in the published tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from planner.recommendation.answer import EQUAL_SCORES
from planner.recommendation.objective import Objective
from planner.recommendation.request import Request
from planner.scoring.accuracy_prior import AccuracyEstimate, estimate_accuracy
from planner.scoring.method_evidence import MethodEvidence, method_evidence, never_below
from planner.search.problem import COST_IMAGES, TrialResult
from profiler.models.methods import method_infos
from profiler.units import DeviceBytes
from profiler.workload import Workload

EDGE = 0.96
"""Share of the budget up to which memory is no cost. A replay is within 2 % of PyTorch's own
allocator (studies/hollow_gpu); the rest is for other programs."""

WORTHWHILE = 0.03
"""Smallest relative saving of time or energy that counts."""

KNOWN_SAVING = 0.25
"""Relative saving for which a less known method is preferred (a choice, not a measurement)."""

WELL_KNOWN = (
    "full", "lora", "head", "adaptformer", "bitfit", "dora", "qlora", "adalora", "bn_head",
    "ssf", "vpt_deep", "vpt_shallow", "prefix", "side", "ln_tune", "galore",
)  # fmt: skip
"""Methods from the best known and simplest to run to the least (a choice, not a measurement)."""


NO_COMPARISON = MethodEvidence(
    tier=1,
    score=0.0,
    tables=(),
    effect=None,
    strength="none",
    reason="with random weights, training all parameters is expected to be best, then more of them",
)
"""Evidence on random weights: no comparison of methods with them is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The part of a request that ranks candidates.

    Attributes:
        budget_bytes: budget in device bytes.
        train_images: number of training images, fewer if classes are unequal.
        pretrained: whether training starts from pretrained weights; published comparisons hold
            for no others.
        objective: criterion for candidates of equal expected accuracy.
    """

    budget_bytes: DeviceBytes
    train_images: int | None = None
    pretrained: bool = True
    objective: Objective = "balanced"

    @classmethod
    def of(cls, request: Request) -> Question:
        """Return the question of a request."""
        return cls(
            budget_bytes=request.budget_bytes,
            train_images=request.balanced_images,
            pretrained=request.trains_pretrained,
            objective=request.objective,
        )

    def evidence(self, result: TrialResult) -> MethodEvidence:
        """Return the published comparisons of a candidate's method."""
        workload = result.candidate.workload
        if not self.pretrained:
            return NO_COMPARISON
        return method_evidence(
            model=workload.model, method=workload.method, train_images=self.train_images
        )

    def cost(self, result: TrialResult) -> float:
        """Return the cost of an image: time, energy, or their geometric mean."""
        images = result.candidate.workload.effective_batch
        known = {"time": result.step_seconds, "energy": result.energy_joules}
        wanted = [known.get(self.objective)] if self.objective in known else [*known.values()]
        values = [value / images for value in wanted if value is not None]
        values = values or [result.cost / COST_IMAGES]
        return math.prod(values) ** (1 / len(values))


def expected_accuracy(request: Request, workload: Workload) -> AccuracyEstimate:
    """Return the accuracy expected after a full training, as far as published numbers allow."""
    part = request.of_backbone(workload.model)
    expected = estimate_accuracy(
        model=workload.model,
        method=workload.method,
        data=request.run.data,
        rank=workload.rank,
        # that of the plan, which fine-tunes pretrained weights even if none can be loaded here
        pretrained=part.trains_pretrained,
        weights_file=part.run.weights is not None,
        image_size=workload.image_size,
        train_images=request.balanced_images,
    )
    if expected.kind == "published" and workload.optimizer == "sgd":
        return replace(expected, kind="prior", reason=f"{expected.reason}, but with AdamW")
    return expected


def equals_of(results: Sequence[TrialResult]) -> list[TrialResult]:
    """Return the candidates of the highest accuracy score."""
    highest = max(result.score for result in results)
    return [result for result in results if result.score > highest - EQUAL_SCORES]


def within_edge(results: Sequence[TrialResult], question: Question) -> list[TrialResult]:
    """Return the candidates with a margin to the budget, or all if none has one."""
    limit = EDGE * question.budget_bytes
    return [result for result in results if result.device_bytes <= limit] or [*results]


def best_of(results: Sequence[TrialResult], question: Question) -> TrialResult:
    """Return the candidate to recommend.

    Args:
        results: candidates that fit the budget, at least one.
        question: budget, number of images and objective.
    """
    pool = within_edge(equals_of(results), question)
    methods = dict.fromkeys(r.candidate.workload.method for r in pool)
    rows = [best_configuration(of_method(pool, method), question) for method in methods]
    if question.objective in ("time", "energy"):
        return min(rows, key=question.cost)
    if question.objective == "accuracy":
        return max(rows, key=lambda r: (_mean_effect(question.evidence(r)), -question.cost(r)))
    rows.sort(key=lambda r: _known_rank(r, question))
    best = rows[0]
    for row in rows[1:]:
        if _displaces(row, best, question):
            best = row
    return best


def best_configuration(results: Sequence[TrialResult], question: Question) -> TrialResult:
    """Return the best of candidates that share a method."""
    pool = near_default_ranks(results)
    least = min(map(question.cost, pool))
    quick = [r for r in pool if question.cost(r) <= (1 + WORTHWHILE) * least]
    if question.objective == "balanced":
        # a larger micro-batch may save 3 % of the time and less of time and energy together
        seconds = {id(r): replace(question, objective="time").cost(r) for r in quick}
        quick = [r for r in quick if seconds[id(r)] <= (1 + WORTHWHILE) * min(seconds.values())]
    return min(quick, key=lambda r: (not r.candidate.placement.is_none, r.device_bytes))


def near_default_ranks(results: Sequence[TrialResult]) -> list[TrialResult]:
    """Return, of each method, the candidates of the rank nearest to its published default."""
    nearest: dict[str, float] = {}
    for result in results:
        method = result.candidate.workload.method
        nearest[method] = min(nearest.get(method, math.inf), _rank_distance(result))
    return [r for r in results if _rank_distance(r) == nearest[r.candidate.workload.method]]


def equal_methods(results: Sequence[TrialResult]) -> list[str]:
    """Return the methods of the highest accuracy score, the best known first."""
    if not results:
        return []
    methods = {r.candidate.workload.method: r for r in equals_of(results)}
    return sorted(methods, key=lambda name: _fame(methods[name]))


def best_known(results: Sequence[TrialResult], question: Question) -> str:
    """Return the method that was compared most often, of these the best known one (rule 4)."""
    return min(results, key=lambda r: _known_rank(r, question)).candidate.workload.method


def of_method(results: Iterable[TrialResult], method: str) -> list[TrialResult]:
    """Return the candidates of a method."""
    return [result for result in results if result.candidate.workload.method == method]


def _displaces(row: TrialResult, best: TrialResult, question: Question) -> bool:
    method, held = (r.candidate.workload.method for r in (row, best))
    saving = WORTHWHILE if held == "full" else KNOWN_SAVING
    evidence = [question.evidence(r) for r in (row, best)]
    return (
        question.cost(row) <= (1 - saving) * question.cost(best)
        and len(evidence[0].tables) >= len(evidence[1].tables)
        and never_below(
            method,
            held,
            model=row.candidate.workload.model,
            train_images=question.train_images,
        )
    )


def _mean_effect(evidence: MethodEvidence) -> float:
    return -math.inf if evidence.effect is None else evidence.effect


def _known_rank(result: TrialResult, question: Question) -> tuple[int, int]:
    return -len(question.evidence(result).tables), _fame(result)


def _fame(result: TrialResult) -> int:
    method = result.candidate.workload.method
    return WELL_KNOWN.index(method) if method in WELL_KNOWN else len(WELL_KNOWN)


@cache
def _default_ranks() -> dict[str, int | None]:
    return {info.name: info.default_rank for info in method_infos()}


def _rank_distance(result: TrialResult) -> float:
    """Return how far a rank is from the method's published default, in doublings."""
    workload = result.candidate.workload
    default = _default_ranks().get(workload.method)
    if workload.rank is None or default is None:
        return 0.0
    return abs(math.log2(workload.rank / default))
