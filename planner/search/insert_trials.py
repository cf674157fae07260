"""Inserts finished trials into a study's database in one transaction.

Optuna adds a trial with some forty statements, two for each parameter and attribute: 200 trials
take seconds. All their rows are a statement for each table. Either all trials are stored or none.

The tables are those of version ``SCHEMA_VERSION`` of Optuna's schema; trials are not inserted into
others, nor into journals and proxies, and the caller adds them by Optuna.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy.engine import Connection

SCHEMA_VERSION = 12
"""Version of Optuna's tables since Optuna 3.2 (``version_info.schema_version``)."""

_INSERTED = {
    "trials": ("study_id", "number", "state", "datetime_start", "datetime_complete"),
    "trial_values": ("trial_id", "objective", "value", "value_type"),
    "trial_params": ("trial_id", "param_name", "param_value", "distribution_json"),
    "trial_user_attributes": ("trial_id", "key", "value_json"),
    "trial_system_attributes": ("trial_id", "key", "value_json"),
}
"""Columns that are written, by table. The database numbers the rows itself."""


def insert_trials(storage: BaseStorage, study_name: str, trials: Sequence[FrozenTrial]) -> bool:
    """Insert finished trials into a study.

    The caller holds the lock of the study, because the trials are numbered here.

    Args:
        storage: storage of the study.
        study_name: name of the study.
        trials: finished trials without intermediate values.

    Returns:
        Whether they were inserted. If not, nothing was written.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy import column, select, table
    from sqlalchemy.exc import SQLAlchemyError

    if not isinstance(storage, RDBStorage) or not all(map(_is_plain, trials)):
        return False
    if not trials:  # SQLAlchemy deprecates an insertion of no rows
        return True
    study_id = storage.get_study_id_from_name(study_name)
    tables = {name: table(name, *map(column, names)) for name, names in _INSERTED.items()}
    version: Any = select(column("schema_version")).select_from(table("version_info"))
    try:
        with storage.engine.begin() as connection:
            if connection.execute(version).scalar() != SCHEMA_VERSION:
                return False
            rows = _rows(trials, _new_trials(connection, study_id, trials))
            for name, values in rows.items():
                if values:
                    connection.execute(tables[name].insert(), values)
    except SQLAlchemyError:
        return False
    return True


def _is_plain(trial: FrozenTrial) -> bool:
    """Return whether a trial is finished, with finite values and no intermediate ones."""
    values = trial.values or ()
    return (
        trial.state.is_finished() and not trial.intermediate_values and all(map(isfinite, values))
    )


def _new_trials(
    connection: Connection, study_id: int, trials: Sequence[FrozenTrial]
) -> dict[int, int]:
    """Insert the rows of the table of trials; return their keys by position."""
    from sqlalchemy import DateTime, column, func, select, table

    dates = (column(name, DateTime) for name in ("datetime_start", "datetime_complete"))
    names = ("trial_id", "study_id", "number", "state")
    stored = table("trials", *map(column, names), *dates)
    of_study = stored.c.study_id == study_id
    # databases with row locks hold this one until the end, as Optuna does to number a trial
    study: Any = select(column("study_id")).select_from(table("studies", column("study_id")))
    connection.execute(study.where(column("study_id") == study_id).with_for_update())
    first = connection.execute(select(func.count()).select_from(stored).where(of_study)).scalar()
    assert first is not None
    connection.execute(
        stored.insert(),
        [
            {
                "study_id": study_id,
                "number": first + position,
                "state": trial.state.name,
                "datetime_start": trial.datetime_start,
                "datetime_complete": trial.datetime_complete,
            }
            for position, trial in enumerate(trials)
        ],
    )
    found = connection.execute(
        select(stored.c.number, stored.c.trial_id).where(of_study, stored.c.number >= first)
    )
    return {number - first: trial_id for number, trial_id in found}


def _rows(trials: Sequence[FrozenTrial], keys: dict[int, int]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each table beside that of the trials."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _INSERTED if name != "trials"}
    for position, trial in enumerate(trials):
        for name, values in _rows_of(trial):
            names = _INSERTED[name]
            rows[name].append(dict(zip(names, (keys[position], *values), strict=True)))
    return rows


def _rows_of(trial: FrozenTrial) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield (table, values without the trial's key) of a trial."""
    from optuna.distributions import distribution_to_json

    for objective, value in enumerate(trial.values or ()):
        yield "trial_values", (objective, value, "FINITE")
    for name, value in trial.params.items():
        distribution = trial.distributions[name]
        stored = distribution.to_internal_repr(value), distribution_to_json(distribution)
        yield "trial_params", (name, *stored)
    for name, value in trial.user_attrs.items():
        yield "trial_user_attributes", (name, json.dumps(value))
    for name, value in trial.system_attrs.items():
        yield "trial_system_attributes", (name, json.dumps(value))
