"""The database of a study: opens it, and checks that it is ours and of the same problem."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.plan import versions
from planner.search.problem import OBJECTIVES, SearchProblem
from profiler.errors import InputError, UsageError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

PROBLEM_ATTRIBUTE = "budgetplan.problem"
"""User attribute of a study that holds the problem. A study is continued only for an equal one."""

STUDY_FOLDER = Path("studies")


def default_storage(study_name: str) -> str:
    """Return the URL of ``studies/NAME.db`` in the current directory.

    Raises:
        UsageError: the name cannot be a file name.
    """
    if not study_name or any(c in study_name for c in "/\\\0") or study_name.startswith("."):
        raise UsageError(f"a study name must be a valid file name, got {study_name!r}")
    return f"sqlite:///{STUDY_FOLDER / study_name}.db"


def newest_storage() -> str:
    """Return the URL of the newest database in ``studies/``.

    Raises:
        InputError: there is none.
    """
    files = sorted(STUDY_FOLDER.glob("*.db"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise InputError(f"there is no study in {STUDY_FOLDER}/; name one with --storage")
    return f"sqlite:///{files[-1]}"


def open_study(problem: SearchProblem, name: str, url: str) -> Study:
    """Open the durable study of a problem, or create it.

    Raises:
        InputError: the storage cannot be used, or the study belongs to another problem.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_file(url)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=_storage(url),
            directions=list(OBJECTIVES),
            load_if_exists=True,
        )
        known = study.user_attrs
        if not known and not study.get_trials(deepcopy=False):
            _write_problem(study, problem)
            return study
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError) as error:
        raise unusable_storage(url, error) from error
    except optuna.exceptions.OptunaError as error:
        raise unusable_storage(url, error) from error
    _check_same_problem(problem, known.get(PROBLEM_ATTRIBUTE), name)
    return study


class _UnsyncedConnection(sqlite3.Connection):
    """A connection that does not wait for the disk, because waiting takes longer than a trial.

    If the process is killed, nothing is lost, because the operating system still writes its cache.
    A power failure can corrupt the study.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous=OFF")


def _storage(url: str) -> RDBStorage | str:
    from optuna.storages import RDBStorage

    if sqlite_path(url) is None:
        return url
    return RDBStorage(url, engine_kwargs={"connect_args": {"factory": _UnsyncedConnection}})


def unusable_storage(url: str, error: Exception) -> InputError:
    """Return the one-line error for a storage that Optuna cannot use, without its password."""
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"the study storage {_without_password(url)} cannot be used ({reason[0]})")


def _write_problem(study: Study, problem: SearchProblem) -> None:
    # Only the problem decides whether a study can be continued. The rest is for the dashboard.
    study.set_user_attr("model", problem.space.base.model)
    study.set_user_attr("budget_bytes", problem.budget_bytes)
    study.set_user_attr("device", problem.device.name)
    study.set_user_attr("versions", versions())
    study.set_user_attr(PROBLEM_ATTRIBUTE, problem.to_json())


def _check_same_problem(problem: SearchProblem, stored: object, name: str) -> None:
    if not isinstance(stored, dict):
        raise InputError(f"study {name!r} was not made by budgetplan; use another --study")
    wanted = json.loads(json.dumps(problem.to_json()))
    if stored == wanted:
        return
    for key in wanted:
        if stored.get(key) != wanted[key] and key != "space":
            raise InputError(
                f"study {name!r} belongs to another problem: its {key.replace('_', ' ')} is "
                f"{stored.get(key)!r}, not {wanted[key]!r}; use another --study"
            )
    space = stored.get("space")
    changed = next(
        (k for k, v in wanted["space"].items() if not isinstance(space, dict) or space.get(k) != v),
        "space",
    )
    raise InputError(
        f"study {name!r} belongs to another problem: its {changed.replace('_', ' ')} differ; "
        "use the options it was started with, or another --study"
    )


def sqlite_path(url: str) -> Path | None:
    """Return the file of an SQLite URL; None for any other database."""
    scheme, _, rest = url.partition(":///")
    if not scheme.startswith("sqlite") or not rest:
        return None
    return Path(rest.partition("?")[0])


def check_file(url: str) -> None:
    """Refuse a file that is not an Optuna database, and create the folder of a new one.

    Optuna would otherwise create its tables in any SQLite file.

    Raises:
        InputError: not a URL, or the file is not an Optuna database.
    """
    if "://" not in url:
        raise InputError(f"{url!r} is not a storage URL; write it as sqlite:///studies/NAME.db")
    path = sqlite_path(url)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size == 0:
            return
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{path} is not a readable study database ({error})") from error
    if "studies" not in tables or "trials" not in tables:
        raise InputError(f"{path} is an SQLite file that holds no Optuna studies; name another")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    if not at:
        return url
    return f"{scheme}{separator}{user.partition(':')[0]}@{host}"
