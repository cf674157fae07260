"""Serves studies in a browser through optuna-dashboard."""

from __future__ import annotations

from collections.abc import Callable

from planner.search.storage import check_file, optuna_url, storage_errors
from planner.search.storage_url import sqlite_path
from profiler.errors import InputError, UsageError


def serve_dashboard(
    url: str, *, host: str, port: int, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serve the studies of a storage until interrupted.

    Args:
        url: SQLAlchemy URL of the storage.
        host: address to listen on.
        port: port to listen on.
        on_ready: called once the storage is open.

    Raises:
        InputError: the storage cannot be used.
        UsageError: the address is in use.
    """
    import optuna
    from optuna_dashboard import run_server

    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise InputError(f"{path} does not exist; `budgetplan recommend` creates studies")
    check_file(url)
    with storage_errors(url):
        storage = optuna.storages.get_storage(optuna_url(url))
    on_ready()
    try:
        run_server(storage, host=host, port=port)
    except OSError as error:
        raise UsageError(f"cannot serve at {host}:{port} ({error.strerror or error})") from error
