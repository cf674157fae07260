"""Studies of somebody else, or edited ones: refused in one line before anything is written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from toy_costs import ToyCosts

from planner.search.problem import OBJECTIVES, SearchProblem
from planner.search.space import SearchedMethod, Space
from planner.search.study import search
from planner.search.trial_records import ForeignTrialWarning
from profiler.devices.table import lookup
from profiler.errors import LONGEST_MESSAGE, InputError, UsageError
from profiler.units import DeviceBytes
from profiler.workload import Workload

PROBLEM = SearchProblem(
    space=Space(
        base=Workload(model="test_vit", image_size=32, num_classes=10),
        methods=(SearchedMethod(name="full"), SearchedMethod(name="head")),
        micro_batches=(1, 4, 16),
        effective_batch=16,
        precisions=("fp32", "bf16"),
    ),
    device=lookup("rtx-2060-super"),
    limit_bytes=DeviceBytes(420_000_000),
)
FILE = Path("studies/toy.db")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def go_on(trials: int = 8, name: str = "toy", storage: str | None = None) -> Any:
    return search(PROBLEM, ToyCosts(), trials=trials, seed=0, study_name=name, storage=storage)


def sql(statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(FILE)) as database:
        found = database.execute(statement, values).fetchall()
        database.commit()
        return found


def attributes() -> list[Any]:
    return sql("SELECT * FROM study_user_attributes ORDER BY 1")


def foreign(directions: list[str]) -> optuna.Study:
    FILE.parent.mkdir(exist_ok=True)
    return optuna.create_study(study_name="toy", storage=f"sqlite:///{FILE}", directions=directions)


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("has_trial", [False, True])
def test_a_study_with_other_objectives_is_left_as_it_was(number: int, has_trial: bool) -> None:
    study = foreign(["minimize"] * number)
    if has_trial:
        study.tell(study.ask(), [1.0] * number)
    with pytest.raises(InputError, match=r"study 'toy' was not made by budgetplan: its objectives"):
        go_on()
    assert attributes() == []


def test_a_foreign_study_with_the_same_objectives_is_left_as_it_was() -> None:
    foreign(list(OBJECTIVES)).ask()
    with pytest.raises(InputError, match=r"study 'toy' was not made by budgetplan"):
        go_on()
    assert attributes() == []


def test_an_empty_study_of_an_interrupted_start_is_taken_over() -> None:
    foreign(list(OBJECTIVES))
    assert go_on().trials == 8


NOT_JSON = "this is no JSON"
OTHER_CHOICES = json.dumps(
    {"name": "CategoricalDistribution", "attributes": {"choices": ["full", "banana"]}}
)


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE study_user_attributes SET value_json = '{NOT_JSON}'",
        "UPDATE study_user_attributes SET value_json = '[1]' WHERE key = 'budgetplan.problem'",
        "UPDATE study_user_attributes SET value_json = '\"kWh\"' WHERE key = 'cost_unit'",
        "DELETE FROM study_user_attributes WHERE key = 'cost_unit'",
        f"UPDATE trial_user_attributes SET value_json = '{NOT_JSON}'",
        f"UPDATE trial_params SET distribution_json = '{NOT_JSON}'",
        "UPDATE trials SET state = 'ASLEEP'",
        "UPDATE study_directions SET direction = 'SIDEWAYS'",
        "UPDATE alembic_version SET version_num = 'v99'",
        f"UPDATE trial_params SET distribution_json = '{OTHER_CHOICES}' "
        "WHERE param_name = 'method'",
        "DROP TABLE trial_values",
    ],
)
def test_an_edited_study_is_refused_in_one_line(statement: str) -> None:
    go_on()
    sql(statement)
    with pytest.raises(InputError) as caught:
        go_on(trials=10)
    assert "toy" in str(caught.value)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("head is refused", "head is refused"),
        ("x" * 5000, None),  # shortened
        ("\x1b[2J", ""),
        ("two\nlines", ""),
        ("x" * 30_000, ""),
        (1, ""),
        (None, ""),
    ],
)
def test_the_reason_of_a_failed_trial_is_text_of_a_stranger(
    stored: object, shown: str | None
) -> None:
    """A reason that a file may not have makes its trial a foreign one."""
    first = search(
        PROBLEM, ToyCosts(refuses="head"), trials=8, seed=0, study_name="toy", storage=None
    )
    assert set(first.failures) == {"head is refused"}
    sql("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'reason' AND value_json = ?",
        json.dumps(stored), json.dumps("head is refused"))  # fmt: skip
    if shown == "":
        with pytest.warns(ForeignTrialWarning, match=f"{len(first.failures)} of 8 trials"):
            assert go_on().failures == ()
        return
    again = go_on().failures
    assert len(again) == len(first.failures)
    assert all(len(reason) <= LONGEST_MESSAGE for reason in again)
    assert shown is None or set(again) == {shown}


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("UPDATE trials SET state = 'RUNNING' WHERE number = 2", 1),
        ("UPDATE trials SET state = 'WAITING' WHERE number = 2", 1),
        ("UPDATE trials SET state = 'PRUNED' WHERE number = 2", 1),
        ("UPDATE trial_values SET value_type = 'INF_POS', value = NULL WHERE trial_id = 3", 1),
        ("UPDATE trial_values SET value = value + 1 WHERE objective = 2 AND trial_id = 3", 1),
        ("DELETE FROM trial_params WHERE trial_id = 3", 1),
        ("UPDATE trial_params SET distribution_json = replace(distribution_json, '\"full\"', "
         f"'1{'0' * 400}') WHERE param_name = 'method' AND trial_id = 3", 1),
        ("UPDATE trial_user_attributes SET value_json = '-1' "
         "WHERE key = 'peak_bytes' AND trial_id = 3", 1),
        ("UPDATE trial_user_attributes SET value_json = '1e999' "
         "WHERE key = 'step_seconds' AND trial_id = 3", 1),
        ("UPDATE trial_user_attributes SET value_json = '{}' "
         "WHERE key = 'candidate' AND trial_id = 3", 1),
        ("DELETE FROM trial_user_attributes WHERE key = 'reason' AND trial_id = 3", 1),
        ("DELETE FROM trial_system_attributes WHERE trial_id = 3", 1),
    ],
)  # fmt: skip
def test_a_trial_that_cannot_be_used_is_ignored_with_a_warning(statement: str, lost: int) -> None:
    whole = {json.dumps(r.assignment, sort_keys=True): r.objectives for r in go_on().results}
    sql(statement)
    with pytest.warns(ForeignTrialWarning, match=rf"^{lost} of 8 trials of study 'toy'"):
        again = go_on(trials=10)
    assert again.trials == 10
    for result in again.results:  # nothing of the edited trial is in the results
        key = json.dumps(result.assignment, sort_keys=True)
        assert result.objectives == whole.get(key, result.objectives)
    assert all(result.device_bytes == result.objectives[2] for result in again.results)


def test_a_note_on_a_trial_is_no_reason_to_ignore_it() -> None:
    go_on()
    sql("INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (3, 'note', '\"a\"')")
    assert go_on(trials=10).trials == 10


@pytest.mark.parametrize(
    "name", ["a b", "{}", "{0}", "{SCHEMA_VERSION}", "100%", "%20", "%s", "é#"]
)
def test_any_file_name_is_a_study_name(name: str) -> None:
    assert go_on(trials=4, name=name).trials == 4
    assert Path(f"studies/{name}.db").is_file()
    assert go_on(trials=6, name=name).trials == 6
    assert [path.name for path in Path("studies").iterdir()] == [f"{name}.db"]


@pytest.mark.parametrize("name", ["a?b", "a\nb", "\x1b[2J", "x" * 300, "a\ud800", "\u202ea"])
def test_what_is_no_file_name_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="a study name must be a file name"):
        go_on(name=name)
    assert not Path("studies").exists()


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    import os

    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_folder, make_pipe])
def test_what_is_no_file_is_refused(make: Callable[[Path], None]) -> None:
    FILE.parent.mkdir()
    make(FILE)
    with pytest.raises(InputError, match="not a regular file"):
        go_on()


def test_a_database_of_braces_is_served_under_its_own_name() -> None:
    from planner.search.backends import optuna_url

    assert optuna_url("sqlite:///a{b}.db").format(SCHEMA_VERSION=1) == "sqlite:///a{b}.db"
    server = "mysql://host/db_{SCHEMA_VERSION}"
    assert optuna_url(server) == server


@pytest.mark.parametrize("name", ["toy", "another"])
def test_parameters_of_a_trial_that_is_gone_are_not_taken_over(name: str) -> None:
    go_on()
    sql("DELETE FROM trials WHERE trial_id = (SELECT max(trial_id) FROM trials)")
    before = attributes(), sql("SELECT * FROM studies"), sql("SELECT * FROM trial_params")
    with pytest.raises(InputError, match="without their row in trials"):
        go_on(trials=9, name=name, storage=f"sqlite:///{FILE}")
    assert (attributes(), sql("SELECT * FROM studies"), sql("SELECT * FROM trial_params")) == before


def test_a_damaged_page_is_found_before_a_study_is_added() -> None:
    go_on()
    FILE.rename("whole.db")
    whole, pages = Path("whole.db").read_bytes(), 0
    for begin in range(4096, len(whole), 4096):
        damaged = bytearray(whole)
        damaged[begin : begin + 64] = b"\xa5" * 64
        FILE.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged|not a readable"):
            go_on(name="another", storage=f"sqlite:///{FILE}")
        assert FILE.read_bytes() == bytes(damaged)
        pages += 1
    assert pages > 10


def test_a_transaction_of_a_killed_process_is_rolled_back() -> None:
    go_on()
    sql("PRAGMA journal_mode=DELETE")
    before = sql("SELECT * FROM trial_params")
    with closing(sqlite3.connect(FILE, isolation_level=None)) as killed:
        killed.execute("PRAGMA cache_size=1")  # changed pages go to the file before the commit
        killed.execute("BEGIN IMMEDIATE")
        killed.execute("UPDATE trial_params SET param_value = 7")
        left = {path.name: path.read_bytes() for path in FILE.parent.glob("toy.db*")}
    assert len(left["toy.db-journal"]) > 512
    for name, content in left.items():
        (FILE.parent / name).write_bytes(content)
    assert go_on(trials=9).trials == 9
    assert sql("SELECT * FROM trial_params")[: len(before)] == before


def test_a_storage_from_which_optuna_deleted_a_study_is_whole() -> None:
    go_on()
    optuna.delete_study(study_name="toy", storage=f"sqlite:///{FILE}")
    assert go_on(name="another", storage=f"sqlite:///{FILE}").trials == 8
