"""Serves studies in a browser through optuna-dashboard."""

from __future__ import annotations

from collections.abc import Callable

from planner.search.storage import check_file, sqlite_path, unusable_storage
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
    from sqlalchemy.exc import SQLAlchemyError

    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise InputError(f"{path} does not exist; `budgetplan recommend` creates studies")
    check_file(url)
    try:
        storage = optuna.storages.get_storage(url)
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        raise unusable_storage(url, error) from error
    on_ready()
    try:
        run_server(storage, host=host, port=port)
    except OSError as error:
        raise UsageError(f"cannot serve at {host}:{port} ({error.strerror or error})") from error
