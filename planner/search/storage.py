"""Where a study is kept: opening, naming, and checking that it is ours and the same search."""

from __future__ import annotations

import json
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.plan import versions
from planner.search.problem import IMAGES, OBJECTIVES, Problem
from profiler.errors import InputError, UsageError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

LEGACY_CONSTRAINT = "constraints"  # what optuna-dashboard 0.21 reads

PROBLEM = "budgetplan.problem"

STUDY_FOLDER = Path("studies")


def default_storage(study_name: str) -> str:
    """Return the URL of ``studies/NAME.db`` in the current directory.

    Raises:
        UsageError: the name cannot be a file name.
    """
    if not study_name or any(c in study_name for c in "/\\\0") or study_name.startswith("."):
        raise UsageError(f"a study's name must be usable as a file name, got {study_name!r}")
    return f"sqlite:///{STUDY_FOLDER / study_name}.db"


def newest_storage() -> str:
    """Return the URL of the newest file in ``studies/``.

    Raises:
        InputError: there is none.
    """
    files = sorted(STUDY_FOLDER.glob("*.db"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise InputError(f"there is no study in {STUDY_FOLDER}/; name one with --storage")
    return f"sqlite:///{files[-1]}"


def open_study(problem: Problem, name: str, url: str) -> Study:
    """Open the durable study, or make it.

    Raises:
        InputError: the storage cannot be used, or the study is of another problem.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_file(url)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=_storage(url),
            directions=[d.replace("ise", "ize") for d in OBJECTIVES],  # type: ignore[misc]
            load_if_exists=True,
        )
        known = study.user_attrs
        if not known and not study.get_trials(deepcopy=False):
            _describe(study, problem)
            return study
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError) as error:
        raise unusable(url, error) from error
    except optuna.exceptions.OptunaError as error:
        raise unusable(url, error) from error
    _check_same(problem, known.get(PROBLEM), name)
    return study


class _Unhurried(sqlite3.Connection):
    """Leaves it to the system when to write to the disk.

    To wait for the disk takes longer than a trial. A process that is killed loses nothing by it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous=OFF")


def _storage(url: str) -> RDBStorage | str:
    from optuna.storages import RDBStorage

    if sqlite_path(url) is None:
        return url
    return RDBStorage(url, engine_kwargs={"connect_args": {"factory": _Unhurried}})


def unusable(url: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"the study storage {_without_password(url)} cannot be used ({reason[0]})")


def name_objectives(study: Study, cost_unit: str) -> None:
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(
            ["accuracy score", f"{cost_unit} for {IMAGES} images", "device bytes"]
        )


def _describe(study: Study, problem: Problem) -> None:
    # one attribute decides whether a study can go on; the others are for people
    study.set_user_attr("model", problem.space.base.model)
    study.set_user_attr("budget_bytes", problem.budget_bytes)
    study.set_user_attr("device", problem.device)
    study.set_user_attr("versions", versions())
    study.set_user_attr(PROBLEM, problem.to_json())


def _check_same(problem: Problem, stored: object, name: str) -> None:
    if not isinstance(stored, dict):
        raise InputError(f"study {name!r} is not one of budgetplan's; use another --study")
    wanted = json.loads(json.dumps(problem.to_json()))
    if stored == wanted:
        return
    for key in wanted:
        if stored.get(key) != wanted[key] and key != "space":
            raise InputError(
                f"study {name!r} is of another problem: its {key.replace('_', ' ')} is "
                f"{stored.get(key)!r}, not {wanted[key]!r}; use another --study"
            )
    space = stored.get("space")
    changed = next(
        (k for k, v in wanted["space"].items() if not isinstance(space, dict) or space.get(k) != v),
        "space",
    )
    raise InputError(
        f"study {name!r} is of another problem: its {changed.replace('_', ' ')} differ; "
        "use the options it was started with, or another --study"
    )


def sqlite_path(url: str) -> Path | None:
    """Return the file of an SQLite URL, or None for another storage."""
    scheme, _, rest = url.partition(":///")
    if not scheme.startswith("sqlite") or not rest:
        return None
    return Path(rest.partition("?")[0])


def check_file(url: str) -> None:
    """Refuse a file that is no database of Optuna's, and make the folder of a new one."""
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
        raise InputError(f"{path} is not a study database that can be read ({error})") from error
    if "studies" not in tables or "trials" not in tables:
        raise InputError(f"{path} is an SQLite file, but holds no Optuna studies; name another")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    if not at:
        return url
    return f"{scheme}{separator}{user.partition(':')[0]}@{host}"
