"""The search stage: one search for each backbone of a question, and one list of candidates.

Each backbone has a space and a study of its own. The scores of a study order the candidates of its
backbone. For an answer over several backbones they are moved: the best method of each backbone gets
the level of the backbone (``planner.scoring.backbone_level``), and the distances of its other
methods stay. With random weights no level is known, and all scores count trainable parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from planner.recommendation.named_rows import answer_rows, is_paper_default
from planner.recommendation.ranking import Question
from planner.recommendation.request import Notify, Request
from planner.scoring.backbone_level import BackboneLevel
from planner.search.problem import CostEstimator, SearchProblem, SearchResult, TrialResult
from planner.search.study import search
from profiler.devices.table import device_spec


def search_problem(request: Request) -> SearchProblem:
    """Return the search problem of a request's first backbone."""
    return SearchProblem(
        space=request.space,
        device=device_spec(request.device.name),
        limit_bytes=request.limit_bytes,
        data=request.run.data,
        train_images=request.balanced_images,
        # The plan will fine-tune pretrained weights, even if they cannot be loaded here and now.
        pretrained=request.trains_pretrained,
    )


def search_backbones(request: Request, cost: CostEstimator, notify: Notify) -> SearchResult:
    """Search the space of every backbone and return the results of all.

    Args:
        request: the request.
        cost: cost model of the device.
        notify: called with (stage, current work, fraction of the stage done).

    Returns:
        The search of the first backbone, with the results of the others.
    """
    parts = request.backbones
    found = [
        _search(part, cost, notify, done=i / len(parts), share=1 / len(parts))
        for i, part in enumerate(parts)
    ]
    if len(parts) == 1:
        return found[0]
    return replace(
        found[0],
        results=tuple(_on_one_scale(request, found)),
        stopped="; ".join(_stopped(parts, found)) or None,
        trials=sum(each.trials for each in found),
        failures=tuple(failure for each in found for failure in each.failures),
    )


def _stopped(parts: Sequence[Request], found: Sequence[SearchResult]) -> Iterator[str]:
    """Yield why the search of a backbone ended early, for each that did."""
    for part, each in zip(parts, found, strict=True):
        if each.stopped is not None:
            yield f"{part.space.base.model}: {each.stopped}"


def smallest_backbone(request: Request, found: SearchResult) -> tuple[Request, SearchResult]:
    """Return the request and results of the backbone whose smallest candidate needs least."""
    if not request.others or not found.results:
        return request, found
    parts = {part.space.base.model: part for part in request.backbones}
    least = min(
        found.results,
        key=lambda r: parts[r.candidate.workload.model].budget_for(r.device_bytes),
    )
    model = least.candidate.workload.model
    own = tuple(r for r in found.results if r.candidate.workload.model == model)
    return request.of_backbone(model), replace(found, results=own)


def _search(
    request: Request, cost: CostEstimator, notify: Notify, *, done: float, share: float
) -> SearchResult:
    """Search the space of a backbone; it takes a share of the stage."""
    what, at = (f"{request.space.base.model}: " if share < 1 else ""), done

    def on_trial(trials: int, total: int) -> None:
        nonlocal at
        at = done + share * trials / total
        notify("search", f"{what}trial {trials} of {total}", at)

    return search(
        search_problem(request),
        cost,
        trials=request.trials,
        seed=request.run.seed,
        study_name=request.study,
        storage=request.storage,
        kept_rows=lambda results: _kept_rows(request, results),
        stop=request.stop,
        on_trial=on_trial,
        on_profile=lambda text, _: notify("search", text, at),
    )


def _kept_rows(request: Request, results: Sequence[TrialResult]) -> list[TrialResult]:
    """Return the rows of an answer, and the paper's default even if it does not fit."""
    limit_bytes = request.limit_bytes
    fitting = [row for row in results if row.device_bytes <= limit_bytes]
    rows = answer_rows(fitting, Question.of(request)) if fitting else []
    return [*rows, *(row for row in results if is_paper_default(row))]


def _on_one_scale(request: Request, found: Sequence[SearchResult]) -> Iterator[TrialResult]:
    """Yield the results of all backbones with scores that compare."""
    levels: Mapping[str, BackboneLevel] = {}
    if request.trains_pretrained:
        levels = request.backbone_levels
    for each in found:
        best = max((result.score for result in each.results), default=0.0)
        for result in each.results:
            level = levels.get(result.candidate.workload.model)
            if level is None:
                yield result
                continue
            yield replace(
                result,
                score=level.score + result.score - best,
                reason=f"{level.reason}; {result.reason}",
                level_reason=level.reason,
            )
