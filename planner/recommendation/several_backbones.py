"""Requests over several backbones: their names, and one request that holds all.

``auto`` means a shortlist (``planner.scoring.backbone_facts``) of well-known backbones that can be
trained within the budget.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from planner.recommendation.answer import FrontEntry
from planner.recommendation.choose import ChosenEntry
from planner.recommendation.request import Request, question_folder, start_time
from planner.search.storage import default_storage

BuildRequest = Callable[[str, str | None], Request]
"""Builds the request for a backbone and a study."""

MOST_CHARACTERS = 40
"""Longest list of backbones in the name of a folder; the command to run has to be read, too."""


def request_for_backbones(
    models: Sequence[str],
    build: BuildRequest,
    *,
    study: str | None,
    storage: str | None,
    out: Path,
) -> Request:
    """Return one request for a question about one or several backbones.

    Args:
        models: names of the backbones, each once.
        build: builds the request for one backbone.
        study: name of the study; with several backbones each study's name ends in the backbone.
        storage: SQLAlchemy URL of the studies; None for one file under ``studies/``.
        out: folder of the folders of plan files.
    """
    if len(models) == 1:
        return build(models[0], study)
    study = study or joint_study_name(models)
    parts = []
    for model in models:
        part = build(model, f"{study}-{model.replace('/', '_')}")
        parts.append(part)
    first = parts[0]
    folder = question_folder(_joined(models), first.run.data, first.budget_bytes)
    url = storage or default_storage(study)
    parts = [replace(part, storage=url, out=out / folder, joint_study=study) for part in parts]
    return replace(parts[0], others=tuple(parts[1:]))


def with_backbone_reason(choice: ChosenEntry, entries: Sequence[FrontEntry]) -> ChosenEntry:
    """Return the choice with the reason for its backbone before that for its method.

    Args:
        choice: the recommended entry.
        entries: rows of the answer; with a single backbone the reason is unchanged.
    """
    models = list(dict.fromkeys(e.plan.candidate.workload.model for e in entries))
    if len(models) == 1:
        return choice
    chosen = entries[choice.index].plan.candidate.workload.model
    tied = [entries[i].plan.candidate.workload.model for i in choice.ties]
    equals = [model for model in dict.fromkeys(tied) if model != chosen]
    result = entries[choice.index].result
    level = result.level_reason or result.reason
    if not equals:
        text = detail = f"of {len(models)} backbones {chosen} is expected to be the most accurate"
        detail += f" ({level})"
    else:
        count = f"{len(equals) + 1} of {len(models)} backbones"
        text = f"{count} tie on expected accuracy"
        detail = (
            f"{count} are expected to be equally accurate ({chosen}: {level}; {', '.join(equals)})"
        )
    return replace(choice, why=f"{text}; {choice.why}", reason=f"{detail}. {choice.reason}")


def joint_study_name(models: Sequence[str]) -> str:
    """Return a readable name for new studies of several backbones."""
    return f"{_joined(models)}-{start_time()}".replace("/", "_")


def _joined(models: Sequence[str]) -> str:
    every = "+".join(models)
    if len(every) <= MOST_CHARACTERS:
        return every
    digest = hashlib.sha256(every.encode()).hexdigest()[:6]  # other backbones, another folder
    return f"{models[0][:MOST_CHARACTERS]}+{len(models) - 1}-more-{digest}"
