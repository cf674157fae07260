"""The runs of probes, kept in the study that their candidates were searched in.

Each run is a user attribute of the study, with a name that holds a hash of the run. Processes that
probe one study therefore add to each other's runs. The content is a JSON object of the caller's;
``planner.training.probe_records`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.search.study_lock import opened_study

RUN_ATTRIBUTE = "budgetplan.probe."
"""Beginning of the names of these attributes."""

MOST_RUNS = 10_000
"""Runs of a study that are read, the first by name."""


def read_probe_runs(url: str, study_name: str) -> list[Any]:
    """Return the stored runs of a study, unchecked.

    Args:
        url: SQLAlchemy URL of the storage.
        study_name: name of an existing study.

    Raises:
        InputError: the study cannot be read.
    """
    with opened_study(url, study_name) as study:
        attributes = study.user_attrs
    names = sorted(name for name in attributes if name.startswith(RUN_ATTRIBUTE))
    return [attributes[name] for name in names[:MOST_RUNS]]


def append_probe_run(url: str, study_name: str, key: str, run: Mapping[str, Any]) -> None:
    """Store one run in a study; a run with the same key is replaced.

    Args:
        url: SQLAlchemy URL of the storage.
        study_name: name of an existing study.
        key: hash of the run.
        run: the run as plain data.

    Raises:
        InputError: the study cannot be written.
    """
    with opened_study(url, study_name) as study:
        study.set_user_attr(RUN_ATTRIBUTE + key, dict(run))
