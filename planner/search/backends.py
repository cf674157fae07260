"""Connects to the storages of studies by their URL.

    sqlite:///FILE            a file on this machine
    postgresql://...          a database server; mysql:// and others that SQLAlchemy knows
    journal:///FILE           Optuna's journal, a file on a disk that several machines share
    grpc://HOST:PORT          Optuna's gRPC proxy before a database

An SQLite file is opened in write-ahead mode with ``synchronous=NORMAL``: a power failure may lose
the last trials and cannot corrupt the study. Where there is no write-ahead mode (network file
systems), each trial waits for the disk.

Connections to a server are tested before each use, so that a server may restart.
"""

from __future__ import annotations

import sqlite3
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from planner.search.storage_url import mask_url, sqlite_path
from profiler.errors import InputError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

LONGEST_WAIT_SECONDS = 60
"""Seconds that a connection waits for another process that writes to the same SQLite file."""

_JOURNAL, _PROXY = "journal:///", "grpc://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeats:
    """Signs of life of the processes that run trials, as Optuna keeps them in a database.

    Attributes:
        interval_seconds: time between two heartbeats of a trial.
        grace_seconds: time without one after which its process counts as dead.
    """

    interval_seconds: int
    grace_seconds: int


def journal_path(url: str) -> Path | None:
    """Return the file of a journal URL; None for any other URL."""
    return Path("/" + unquote(url.removeprefix(_JOURNAL))) if url.startswith(_JOURNAL) else None


def is_proxy(url: str) -> bool:
    """Return whether a URL is that of Optuna's gRPC proxy."""
    return url.startswith(_PROXY)


def check_shared_storage(url: str) -> None:
    """Check the URL of a journal or a proxy; other URLs pass.

    Raises:
        InputError: the journal has no folder, or is no journal; the proxy has no host or port.
    """
    path = journal_path(url)
    if path is not None:
        _check_journal(path)
    elif url.startswith("journal:"):
        raise InputError(
            f"a journal is named by its whole path, journal:///FILE, got {mask_url(url)!r}"
        )
    elif is_proxy(url):
        _proxy_address(url)


def _check_journal(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"the folder of the journal {path} does not exist; create it")
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            start = file.read(1)
    except OSError as error:
        raise InputError(f"cannot read the journal {path}: {error.strerror or error}") from error
    if start not in (b"", b"{"):
        raise InputError(f"{path} is not a journal of Optuna; name another file")


def _proxy_address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise InputError(
            f"a proxy is named by host and port, grpc://HOST:PORT, got {mask_url(url)}"
        )
    return host, port


class _DurableConnection(sqlite3.Connection):
    """A connection that survives a power failure, and waits for the disk only where it must."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        (mode,) = self.execute("PRAGMA journal_mode").fetchone()
        if mode == "wal":
            self.execute("PRAGMA synchronous=NORMAL")  # SQLite's default is FULL


def write_ahead(storage: BaseStorage, url: str) -> None:
    """Switch the SQLite file of a checked study to write-ahead mode."""
    from optuna.storages import RDBStorage

    if sqlite_path(url) is None or not isinstance(storage, RDBStorage):
        return
    with storage.engine.connect() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode=WAL").scalar()
        if mode == "wal":
            connection.exec_driver_sql("PRAGMA synchronous=NORMAL")


def new_storage(url: str, *, heartbeats: Heartbeats | None = None) -> BaseStorage:
    """Connect to a storage, and create Optuna's tables in a new database.

    Args:
        url: storage URL.
        heartbeats: heartbeats of this process; journals and proxies have none. None for none.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import GrpcStorageProxy, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        path = journal_path(url)
        if path is not None:
            return JournalStorage(JournalFileBackend(str(path)))
        if is_proxy(url):
            host, port = _proxy_address(url)
            return GrpcStorageProxy(host=host, port=port)
        beating: dict[str, Any] = {}
        if heartbeats is not None:
            beating = {
                "heartbeat_interval": heartbeats.interval_seconds,
                "grace_period": heartbeats.grace_seconds,
            }
        options: dict[str, Any] = {"pool_pre_ping": True}
        if sqlite_path(url) is not None:
            timeout = {"factory": _DurableConnection, "timeout": LONGEST_WAIT_SECONDS}
            options = {"connect_args": timeout}
        return RDBStorage(optuna_url(url), engine_kwargs=options, **beating)


def close_storage(storage: BaseStorage) -> None:
    """Close the connections of a storage."""
    from optuna.storages import GrpcStorageProxy, RDBStorage

    storage.remove_session()
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()
    elif isinstance(storage, GrpcStorageProxy):
        storage.close()


def optuna_url(url: str) -> str:
    """Return a URL for Optuna, which takes it for a template with ``{SCHEMA_VERSION}``.

    PostgreSQL is reached through psycopg 3 if it is installed; SQLAlchemy 2.0 would take its
    predecessor.
    """
    if url.startswith("postgresql://") and find_spec("psycopg") is not None:
        return url.replace("postgresql://", "postgresql+psycopg://", 1)
    return url if sqlite_path(url) is None else url.replace("{", "{{").replace("}", "}}")
