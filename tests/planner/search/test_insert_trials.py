from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from planner.search.backends import close_storage, new_storage
from planner.search.insert_trials import insert_trials

DIRECTIONS = ["maximize", "minimize", "minimize"]
CHOICES: dict[str, BaseDistribution] = {
    "method": CategoricalDistribution(("full", "lora")),
    "rank": CategoricalDistribution((4, 8, 16)),
}


def trial(method: str, rank: int, *values: float) -> FrozenTrial:
    return create_trial(
        values=list(values),
        params={"method": method, "rank": rank},
        distributions=CHOICES,
        user_attrs={"candidate": {"units": ["a", "b"], "seconds": None}, "reason": "läuft"},
        system_attrs={"constraints": [-1.5]},
        constraints={"budget": -1.5},
    )


TRIALS = [
    trial("lora", 16, 0.1, 3.0, 2e9),
    trial("full", 4, 0.3, 1e-7, 1e9),
    create_trial(state=TrialState.FAIL, user_attrs={"reason": "refused"}),
]


def study_in(folder: Path, name: str) -> tuple[BaseStorage, optuna.Study]:
    storage = new_storage(f"sqlite:///{folder / name}.db")
    optuna.create_study(study_name="another", storage=storage).add_trial(create_trial(value=1.0))
    study = optuna.create_study(study_name="ours", storage=storage, directions=DIRECTIONS)
    study.add_trial(trial("full", 8, 1.0, 2.0, 3.0))
    return storage, study


def content(folder: Path, name: str) -> dict[str, list[Any]]:
    """Return the rows of every table, without their own keys."""
    with closing(sqlite3.connect(folder / f"{name}.db")) as database:
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        tables = [table for (table,) in database.execute(query)]
        return {
            table: sorted(row[1:] for row in database.execute(f"SELECT * FROM {table}"))
            for table in tables
        }


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_inserted_trials_are_those_that_optuna_adds(tmp_path: Path) -> None:
    storage, study = study_in(tmp_path, "inserted")
    assert insert_trials(storage, "ours", TRIALS)
    other_storage, other = study_in(tmp_path, "added")
    other.add_trials(TRIALS)
    assert [each.number for each in study.trials] == [0, 1, 2, 3]
    for ours, theirs in zip(study.trials[1:], other.trials[1:], strict=True):
        assert ours == theirs
        assert ours.constraints == theirs.constraints
    close_storage(storage)
    close_storage(other_storage)
    ours_rows, their_rows = content(tmp_path, "inserted"), content(tmp_path, "added")
    for name in ("trial_values", "trial_params", "trial_user_attributes"):
        assert ours_rows[name] == their_rows[name]


def test_optuna_goes_on_after_inserted_trials(tmp_path: Path) -> None:
    storage, study = study_in(tmp_path, "inserted")
    assert insert_trials(storage, "ours", TRIALS)
    study.add_trial(trial("lora", 4, 0.0, 0.0, 0.0))
    assert [each.number for each in study.trials] == [0, 1, 2, 3, 4]
    assert optuna.load_study(study_name="another", storage=storage).trials[0].number == 0
    close_storage(storage)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE version_info SET schema_version = 13",
        "DROP TABLE trial_system_attributes",  # fails after rows of other tables were inserted
    ],
)
def test_nothing_is_written_into_other_tables(tmp_path: Path, statement: str) -> None:
    storage, _ = study_in(tmp_path, "changed")
    with closing(sqlite3.connect(tmp_path / "changed.db")) as database, database:
        database.execute(statement)
    before = content(tmp_path, "changed")
    assert not insert_trials(storage, "ours", TRIALS)
    assert content(tmp_path, "changed") == before
    close_storage(storage)


def test_optuna_adds_what_is_not_inserted(tmp_path: Path) -> None:
    storage, study = study_in(tmp_path, "plain")
    infinite = trial("full", 4, 1.0, float("inf"), 1.0)
    assert not insert_trials(storage, "ours", [infinite])
    assert not insert_trials(InMemoryStorage(), "ours", TRIALS)
    assert len(study.trials) == 1
    close_storage(storage)
