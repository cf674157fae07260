"""Tampered studies: a search goes on with what is usable, or refuses the study in one line.

A refused study must not have been written to.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

from outcome import FaultError
from sqlalchemy import URL

from planner.cost.step_estimate import StepEstimate
from planner.search.backends import optuna_url
from planner.search.problem import SearchProblem
from planner.search.space import SearchedMethod, Space
from planner.search.study import search
from profiler.devices.table import lookup
from profiler.errors import BudgetplanError
from profiler.placement import PolicyChoice
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

TRIALS = 8

NAMES = ("toy", "a b", "{}", "{0}", "{SCHEMA_VERSION}", "{x}", "100%", "%s", "%%", "%20", "é", "#1",
         "a;b", "a'b", 'a"b', "a&b=c", "-rf", "~", "$HOME", "x" * 200)  # fmt: skip
"""Names of studies, which are also names of their files."""

VALUES: tuple[Any, ...] = (
    None, "", "x", "NaN", "null", "[]", "{}", "[1", '"a"', "1e999", "COMPLETE", "RUNNING", "WAITING",
    "PRUNED", "FAIL", "MINIMIZE", "MAXIMIZE", "NOT_SET", "FINITE", "INF_POS", "INF_NEG", 0, 1, -1,
    2**31, 2**63 - 1, -(2**63), 1.5, 1e300, float("inf"), float("-inf"), b"\x00\xff", b"",
    "\x1b[2J", "\ud7ff", "x" * 3000, '{"a": 1}', '{"name": "FloatDistribution", "attributes": '
    '{"low": 0, "high": 1, "step": null, "log": false}}',
    '{"name": "CategoricalDistribution", "attributes": {"choices": ["full"]}}',
    '{"name": "NoDistribution", "attributes": {}}', "2024-01-01", "2024-01-01 00:00:00.000000",
)  # fmt: skip


class ClosedFormCosts:
    """A cost model in closed form: memory grows with the micro-batch and the rank."""

    rates_version = "closed form"

    def prepare(self, workload: Workload, on_progress: Callable[[str, float], None]) -> None:
        """Profile nothing."""

    def estimate(
        self, candidate: Candidate, budget_bytes: DeviceBytes | None = None
    ) -> StepEstimate:
        """Return the estimate of a candidate, the same under every budget."""
        load = candidate.workload
        nbytes = (100 + 10 * load.micro_batch + (load.rank or 0)) * 10**6
        return StepEstimate(
            peak_bytes=nbytes,
            reserved_bytes=nbytes,
            device_bytes=DeviceBytes(nbytes),
            step_seconds=1.0 + load.accumulation,
            energy_joules=10.0 + load.accumulation,
        )

    def stored_together(self) -> AbstractContextManager[None]:
        """Return a context in which nothing is stored."""
        return nullcontext()

    def learns_in_units(self, workload: Workload) -> bool:
        """Return whether backward runs through the units."""
        return True

    def place(
        self, workload: Workload, policy: PolicyChoice, budget_bytes: DeviceBytes
    ) -> Candidate:
        """Return the workload with nothing recomputed."""
        return Candidate(workload=workload, policy=policy)


PROBLEM = SearchProblem(
    space=Space(
        base=Workload(model="test_vit", image_size=32, num_classes=10),
        methods=(
            SearchedMethod(name="full"),
            SearchedMethod(name="head"),
            SearchedMethod(name="lora", ranks=(2, 8), default_rank=8),
        ),
        micro_batches=(1, 4, 16),
        effective_batch=16,
        precisions=("fp32", "bf16"),
    ),
    device=lookup("rtx-2060-super"),
    limit_bytes=DeviceBytes(10**9),
)


def go_on(file: Path, name: str, *, trials: int = TRIALS + 2) -> None:
    """Continue the study in a file."""
    search(
        PROBLEM,
        ClosedFormCosts(),
        trials=trials,
        seed=0,
        study_name=name,
        storage=URL.create("sqlite", database=str(file)).render_as_string(),
    )


class StudyTarget:
    """Tampers with copies of one study.

    Args:
        folder: folder for the databases.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole = folder / "whole.db"
        go_on(self.whole, "toy", trials=TRIALS)

    def check(self, rng: Random) -> None:
        """Tamper with a copy and continue it.

        Raises:
            BudgetplanError: the study is refused.
            FaultError: a refused study was written to.
        """
        name = rng.choice(NAMES)
        file = self.folder / f"{name}.db"
        for rest in self.folder.glob("*.db*"):
            if rest != self.whole:
                rest.unlink()
        if rng.random() < 0.15:
            _foreign(file, name, rng)
        else:
            shutil.copyfile(self.whole, file)
            _tamper(file, name, rng)
        before = _attributes(file)
        try:
            go_on(file, name)
        except BudgetplanError:
            if before is not None and _attributes(file) != before:
                raise FaultError("attributes were written into a study that was refused") from None
            raise


def _attributes(file: Path) -> list[Any] | None:
    """Return the attributes and names of all studies of a database; None if it is damaged."""
    try:
        with contextlib.closing(sqlite3.connect(file)) as database:
            rows = database.execute("SELECT * FROM study_user_attributes ORDER BY 1").fetchall()
            names = database.execute("SELECT * FROM studies ORDER BY 1").fetchall()
            return [*rows, *names]
    except (sqlite3.Error, UnicodeDecodeError):
        return None


def _tamper(file: Path, name: str, rng: Random) -> None:
    if rng.random() < 0.15:
        _damage_bytes(file, rng)
        return
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA writable_schema=ON")
        database.execute("UPDATE studies SET study_name = ?", (name,))
        for _ in range(rng.choice((1, 1, 2, 4))):
            with contextlib.suppress(sqlite3.Error):
                _tamper_row(database, rng)
        database.commit()


def _tamper_row(database: sqlite3.Connection, rng: Random) -> None:
    """Change, delete or copy a row, or drop a table or a column."""
    tables = [
        row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    weights = [4 if table.startswith(("trial_", "study_")) else 1 for table in tables]
    (table,) = rng.choices(tables, weights)
    columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
    rows = [row[0] for row in database.execute(f'SELECT rowid FROM "{table}"')]
    kind = rng.random()
    if kind < 0.04:
        database.execute(f'DROP TABLE "{table}"')
    elif kind < 0.07:
        database.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{rng.choice(columns)}" TO other')
    elif rows and kind < 0.15:
        database.execute(f'DELETE FROM "{table}" WHERE rowid = ?', (rng.choice(rows),))
    elif rows:
        column, row = rng.choice(columns), rng.choice(rows)
        (old,) = database.execute(
            f'SELECT "{column}" FROM "{table}" WHERE rowid = ?', (row,)
        ).fetchone()
        database.execute(
            f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (_value(old, rng), row)
        )


def _value(old: Any, rng: Random) -> Any:
    """Return another value of a column; JSON is changed inside as well."""
    data = None
    if isinstance(old, str) and rng.random() < 0.6:
        with contextlib.suppress(ValueError):
            data = json.loads(old)
    if isinstance(data, dict | list):
        places = _json_places(data)
        if places:
            part, key = rng.choice(places)
            part[key] = rng.choice((None, "x", -1, 10**400, 1.5, [], {}, True, float("nan")))
        return json.dumps(data)
    return rng.choice(VALUES)


def _json_places(data: Any) -> list[tuple[Any, Any]]:
    items = list(data.items() if isinstance(data, dict) else enumerate(data))
    found = [(data, key) for key, _ in items]
    for _, value in items:
        if isinstance(value, dict | list):
            found += _json_places(value)
    return found


def _damage_bytes(file: Path, rng: Random) -> None:
    data = bytearray(file.read_bytes())
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.choice((1, 3, 30))):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    file.write_bytes(bytes(data))


def _foreign(file: Path, name: str, rng: Random) -> None:
    """Make somebody else's study of that name."""
    import optuna

    directions = rng.choice(
        (["minimize"], ["maximize", "minimize"], ["maximize", "minimize", "minimize"],
         ["minimize"] * 3, ["minimize"] * 4)
    )  # fmt: skip
    url = optuna_url(URL.create("sqlite", database=str(file)).render_as_string())
    study = optuna.create_study(study_name=name, storage=url, directions=directions)
    if rng.random() < 0.4:
        study.set_user_attr(rng.choice(("note", "budgetplan.problem", "cost_unit")), "mine")
    kind = rng.random()
    if kind < 0.3:
        study.ask()  # a trial that runs for ever
    elif kind < 0.5:
        study.enqueue_trial({"x": 1})
    elif kind < 0.8:
        values = [float("inf") if rng.random() < 0.3 else 1.0 for _ in directions]
        trial = study.ask()
        trial.suggest_float("method", 0, 1)
        study.tell(trial, values)
