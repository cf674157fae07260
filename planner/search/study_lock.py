"""The lock of a study: several processes may search one study.

Only one at a time proposes, evaluates and stores a point, so that no point is evaluated twice
and no trial is left unfinished. The lock ends with its process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from planner.disk.file_lock import FileLock
from planner.disk.free_space import check_folder
from planner.search.backends import (
    Heartbeats,
    check_shared_storage,
    close_storage,
    is_proxy,
    journal_path,
    new_storage,
    optuna_url,
)
from planner.search.storage import check_file, check_rows, storage_errors
from planner.search.storage_url import sqlite_path

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import Connection

_LOCK_STATEMENTS = {
    "postgresql": ("SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"),
    "mysql": ("SELECT GET_LOCK(:key, 86400)", "SELECT RELEASE_LOCK(:key)"),
    "mariadb": ("SELECT GET_LOCK(:key, 86400)", "SELECT RELEASE_LOCK(:key)"),
}
"""Statements that take and free a lock of the connection, by database."""


def check_storage(url: str) -> None:
    """Check that a study can be stored, before a long computation needs it.

    Raises:
        InputError: the storage is not a URL or not an Optuna database, its disk is full, or its
            database cannot be reached.
    """
    check_shared_storage(url)
    path = sqlite_path(url) or journal_path(url)
    if path is None:
        check_file(url)
        if not is_proxy(url):
            _check_database(url)
        return
    check_folder(path.parent)
    with storage_errors(url):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Without the lock, a database that another process has just created may have no tables yet.
    with closing(StudyLock(url, "")) as lock, lock.held():
        check_file(url)


def _check_database(url: str) -> None:
    from sqlalchemy import create_engine

    with storage_errors(url):
        engine = create_engine(optuna_url(url))
        engine.connect().close()
        engine.dispose()


class StudyLock:
    """Lets one process at a time work on a study; the lock ends with its process.

    For SQLite and journals it is a lock on a file beside the database. PostgreSQL and MySQL have
    locks of their own, which end with the connection. Limitation: on other databases and through a
    gRPC proxy there is no lock, and two processes that search one study at once may evaluate a
    point twice.

    Args:
        url: SQLAlchemy URL of the storage.
        study_name: name of the study.
    """

    def __init__(self, url: str, study_name: str) -> None:
        self._url, self._key = url, _lock_key(study_name)
        path = sqlite_path(url) or journal_path(url)
        self._file = None if path is None else FileLock(path.with_name(f".{path.name}.lock"))
        self._connection: Connection | None = None

    def close(self) -> None:
        """Close the connection, and remove the lock file if no other process uses it."""
        if self._connection is not None:
            self._connection.close()
            self._connection.engine.dispose()
            self._connection = None
        if self._file is not None and self._file.path.exists() and self._file.acquire(wait=False):
            self._file.release(remove=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; wait for the process that holds it."""
        if self._file is not None:
            with storage_errors(self._url):
                self._file.acquire(wait=True)
            try:
                yield
            finally:
                self._file.release()
            return
        statements = _LOCK_STATEMENTS.get(self._url.partition(":")[0].partition("+")[0])
        if statements is None:
            yield
            return
        take, free = statements
        with storage_errors(self._url):
            self._execute(take)
        try:
            yield
        finally:
            with storage_errors(self._url):
                self._execute(free)

    def _execute(self, statement: str) -> None:
        from sqlalchemy import create_engine, text

        if self._connection is None:
            engine = create_engine(optuna_url(self._url), isolation_level="AUTOCOMMIT")
            self._connection = engine.connect()
        self._connection.execute(text(statement), {"key": self._key})


@contextmanager
def opened_storage(
    url: str, name: str, lock: StudyLock, *, heartbeats: Heartbeats | None = None
) -> Iterator[BaseStorage]:
    """Open the storage of a study; close its connections at the end.

    SQLite then merges its write-ahead file into the database and removes it.

    Args:
        url: storage URL.
        name: name of the study, for messages.
        lock: lock of the study.
        heartbeats: heartbeats of the process, where Optuna keeps them; None for none.

    Raises:
        InputError: the storage cannot be used.
    """
    check_shared_storage(url)
    with lock.held():  # two processes would create the tables at once
        check_file(url)
        check_rows(url)
        with storage_errors(url, name):
            storage = new_storage(url, heartbeats=heartbeats)
    try:
        yield storage
    finally:
        close_storage(storage)


@contextmanager
def opened_study(url: str, name: str) -> Iterator[Study]:
    """Open an existing study under its lock.

    Args:
        url: storage URL.
        name: name of the study.

    Raises:
        InputError: the storage cannot be used, or has no such study.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with (
        closing(StudyLock(url, name)) as lock,
        opened_storage(url, name, lock) as storage,
        lock.held(),
        storage_errors(url, name),
    ):
        yield optuna.load_study(study_name=name, storage=storage)


def _lock_key(study_name: str) -> int:
    """Return a number of 63 bits, as PostgreSQL's advisory locks take it."""
    digest = hashlib.sha256(f"budgetplan/{study_name}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:8]) >> 1
