"""The database of a study: opens it, and checks that it is ours and of the same problem.

A database may come from somebody else, or may have been edited. Everything is read and checked
before anything is written. Optuna, SQLAlchemy and the decoders of their columns raise errors of
many classes on an edited database; ``storage_errors`` turns each into an ``InputError``.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from planner.plan import versions
from planner.search.backends import LONGEST_WAIT_SECONDS
from planner.search.changed_problem import describe_change
from planner.search.problem import OBJECTIVES, SearchProblem
from planner.search.storage_url import mask_secrets, mask_url, sqlite_path
from profiler.errors import BudgetplanError, InputError, UsageError
from profiler.json_records import shortened

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

PROBLEM_ATTRIBUTE = "budgetplan.problem"
"""User attribute of a study that holds the problem. A study is continued only for an equal one."""

STUDY_FOLDER = Path("studies")
"""Folder of the SQLite files of studies, in the current directory."""

LONGEST_NAME = 200
"""Bytes of a study name. A file name has at most 255, with its ending and SQLite's journal."""

EXTRAS = {"psycopg": "postgresql", "psycopg2": "postgresql", "grpc": "grpc"}
"""Packages that some storages need, and the extra of ours that installs them."""

_TABLES = {
    "studies", "study_directions", "study_system_attributes", "study_user_attributes", "trials",
    "trial_heartbeats", "trial_intermediate_values", "trial_params", "trial_system_attributes",
    "trial_user_attributes", "trial_values", "version_info", "alembic_version",
}  # fmt: skip
"""Tables of an Optuna database."""


def default_storage(study_name: str) -> str:
    """Return the URL of ``studies/NAME.db`` in the current directory.

    Raises:
        UsageError: the name cannot be a file name.
    """
    is_file_name = not (any(c in study_name for c in "/\\?") or study_name.startswith("."))
    is_short = 0 < len(study_name.encode(errors="surrogatepass")) <= LONGEST_NAME
    if not (is_file_name and is_short and study_name.isprintable()):
        raise UsageError(
            f"a study name must be a file name of at most {LONGEST_NAME} bytes, without ?, "
            f"got {shortened(study_name)}"
        )
    return study_storage(STUDY_FOLDER / f"{study_name}.db")


def newest_storage() -> str:
    """Return the URL of the newest database in ``studies/``.

    Raises:
        InputError: there is none.
    """
    files = sorted(STUDY_FOLDER.glob("*.db"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise InputError(f"there is no study in {STUDY_FOLDER}/; name one with --storage")
    return study_storage(files[-1])


def study_storage(path: Path) -> str:
    """Return the URL of an SQLite file."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(path)).render_as_string()


def open_study(problem: SearchProblem, name: str, url: str, storage: BaseStorage) -> Study:
    """Open the durable study of a problem, or create it.

    Raises:
        InputError: the storage cannot be used, or the study belongs to another problem.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with storage_errors(url, name):
        if name not in optuna.get_all_study_names(storage):
            study = optuna.create_study(
                study_name=name, storage=storage, directions=list(OBJECTIVES)
            )
            _write_problem(study, problem)
            return study
        study = optuna.load_study(study_name=name, storage=storage)
        directions = tuple(direction.name.lower() for direction in study.directions)
        if directions != OBJECTIVES:
            raise InputError(
                f"study {shortened(name)} was not made by budgetplan: its objectives are "
                f"{', '.join(directions)}, not {', '.join(OBJECTIVES)}; use another --study"
            )
        known = study.user_attrs
        if not known and not study.get_trials(deepcopy=False):
            _write_problem(study, problem)  # an earlier process was stopped before it wrote it
            return study
    _check_same_problem(problem, known.get(PROBLEM_ATTRIBUTE), shortened(name))
    return study


@contextmanager
def storage_errors(url: str, name: str | None = None) -> Iterator[None]:
    """Raise any error of Optuna and its database as one line that names storage and study."""
    try:
        yield
    except BudgetplanError:
        raise
    except Exception as error:
        raise unusable_storage(url, error, name) from error


def unusable_storage(url: str, error: Exception, name: str | None = None) -> InputError:
    """Return the one-line error for a storage that Optuna cannot use, without its password."""
    cause: BaseException = error
    if type(cause).__name__ == "StorageInternalError" and cause.__cause__ is not None:
        cause = cause.__cause__  # Optuna's own text is about its time-outs
    if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
        return InputError(
            f"the study storage {mask_url(url)} needs {cause.name}: "
            f"pip install 'budgetplan[{EXTRAS[cause.name]}]'"
        )
    reason = mask_secrets(str(cause), url).strip().splitlines() or [""]
    text = f"{type(cause).__name__}: {reason[0]}" if reason[0] else type(cause).__name__
    study = "" if name is None else f"study {shortened(name)} in "
    return InputError(
        f"{study}the study storage {mask_url(url)} cannot be used ({text[:120]}); "
        "name another with --storage"
    )


def _write_problem(study: Study, problem: SearchProblem) -> None:
    # Only the problem decides whether a study can be continued. The rest is for the dashboard.
    study.set_user_attr(PROBLEM_ATTRIBUTE, problem.to_json())
    study.set_user_attr("model", problem.space.base.model)
    study.set_user_attr("limit_bytes", problem.limit_bytes)
    study.set_user_attr("device", problem.device.name)
    study.set_user_attr("versions", versions())


def _check_same_problem(problem: SearchProblem, stored: object, name: str) -> None:
    if not isinstance(stored, dict):
        raise InputError(f"study {name} was not made by budgetplan; use another --study")
    wanted = json.loads(json.dumps(problem.to_json()))
    if stored == wanted:
        return
    change = describe_change(stored, wanted)
    raise InputError(f"study {name} belongs to another problem: {change}")


def check_file(url: str) -> None:
    """Refuse a file that is not an Optuna database, and create the folder of a new one.

    Optuna would otherwise create its tables in any SQLite file.

    Raises:
        InputError: not a URL, or the file is not an Optuna database.
    """
    if "://" not in url:
        raise InputError(
            f"{mask_url(url)!r} is not a storage URL; write it as sqlite:///studies/NAME.db"
        )
    path = sqlite_path(url)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or (path.is_file() and path.stat().st_size == 0):
            return
        if not path.is_file():
            raise InputError(f"{path} is not a regular file; name another study database")
        with closing(_opened_to_read(path)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in names}
    except (OSError, ValueError, sqlite3.Error) as error:
        raise InputError(f"{path} is not a readable study database ({error})") from error
    # A process that was killed while it made the tables leaves some; Optuna makes the others.
    if not tables <= _TABLES:
        raise InputError(f"{path} is an SQLite file that holds no Optuna studies; name another")


def _opened_to_read(path: Path) -> sqlite3.Connection:
    """Open a database without creating it; the remains of a killed writer are rolled back."""
    has_journal = path.with_name(f"{path.name}-journal").exists()
    mode = "rw" if has_journal else "ro"
    address = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=LONGEST_WAIT_SECONDS)


def check_rows(url: str) -> None:
    """Refuse an SQLite file that is damaged, before anything is written to it.

    Optuna reads a study row by row and would find the damage when it stores a trial.

    Raises:
        InputError: the file is damaged, or has rows of trials or studies that are gone: new trials
            would get their numbers, and with them their parameters.
    """
    path = sqlite_path(url)
    if path is None or not path.is_file() or path.stat().st_size == 0:
        return
    try:
        with closing(_opened_to_read(path)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            orphan = database.execute("PRAGMA foreign_key_check").fetchone()
    except sqlite3.Error as error:
        raise InputError(f"{path} is not a readable study database ({error})") from error
    if found != "ok":
        damage = shortened(" ".join(found.split()))
        raise InputError(f"{path} is a damaged SQLite file ({damage}); name another")
    if orphan is not None:
        table, _, parent, _ = orphan
        raise InputError(f"{path} has rows in {table} without their row in {parent}; name another")
