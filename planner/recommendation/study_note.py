"""The notes of a study: the question, the recommended trial, and the other named ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.recommendation.answer import Recommendation, candidate_summary
from planner.search.problem import assignment_key
from planner.search.study_notes import annotate_study
from profiler.units import format_asked, format_bytes_as, format_joules, format_seconds

if TYPE_CHECKING:
    from planner.recommendation.answer import FrontEntry


def annotate(answer: Recommendation, url: str) -> None:
    """Write the notes of an answer into its study, and add its plan files.

    Args:
        answer: the answer.
        url: SQLAlchemy URL of the study; that in the answer has no passwords.

    Raises:
        InputError: the storage cannot be used.
    """
    annotate_study(
        url,
        answer.study,
        note=study_note(answer),
        trial_notes=trial_notes(answer),
        files=[Path(entry.file) for entry in answer.front],
    )


def study_note(answer: Recommendation) -> str:
    """Return the note of the study, in Markdown."""
    request, best = answer.request, answer.front[answer.recommended]
    rows = [
        f"| {', '.join(names)} | {candidate_summary(entry.plan.candidate)} | "
        f"{format_bytes_as(needed_bytes(entry.plan.prediction), request.budget_bytes)} | "
        f"{format_seconds(entry.plan.prediction.step_seconds)} | "
        f"{format_joules(entry.plan.prediction.energy_joules)} |"
        for entry, names in _named(answer)
    ]
    lines = [
        f"# {request.space.base.model} on {request.run.data}, "
        f"{format_asked(request.budget_bytes)}, {best.plan.prediction.device.full_name}",
        "",
        f"**Recommended:** {answer.reason}",
        "",
        "The constraint of a trial is its device memory minus the "
        f"{format_bytes_as(request.limit_bytes, request.budget_bytes)} that may be planned at a "
        f"risk of {request.risk:.2g}: feasible up to 0.",
        "",
        "| name | candidate | memory | step | energy of a step |",
        "|---|---|---|---|---|",
        *rows,
        "",
        *(
            f"- baseline `{name}`: "
            f"{candidate_summary(baseline.prediction.candidate)}, "
            f"{format_bytes_as(needed_bytes(baseline.prediction), request.budget_bytes)}, "
            f"{'fits' if baseline.fits else 'does not fit'}"
            for name, baseline in answer.baselines.items()
        ),
        "",
        f"{answer.trials:,} points were evaluated. The numbers of trials are composed, those of "
        "this table are replayed. The plan files are the artifacts of the study.",
    ]
    return "\n".join(lines)


def trial_notes(answer: Recommendation) -> dict[str, str]:
    """Return the note of each named trial, by its ``assignment_key``."""
    return {
        assignment_key(entry.result.assignment): f"**{', '.join(names)}**\n\n"
        f"plan file `{entry.file.name}`"
        for entry, names in _named(answer)
        # each backbone has a study of its own; this one is that of the recommended backbone
        if not answer.request.others
        or entry.plan.candidate.workload.model == answer.request.space.base.model
    }


def _named(answer: Recommendation) -> list[tuple[FrontEntry, list[str]]]:
    """Return the rows that have a name, the recommended one first."""
    names: dict[int, list[str]] = {answer.recommended: ["recommended"]}
    for each in answer.alternatives:
        if each.index is not None:
            names.setdefault(each.index, []).append(
                "baseline of arXiv 2607.02158" if each.name == "paper" else each.name
            )
    return [(answer.front[index], words) for index, words in names.items()]
