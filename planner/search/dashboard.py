"""Serves studies in a browser through optuna-dashboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from planner.search.storage import check_file, sqlite_path, unusable
from profiler.errors import InputError, UsageError

if TYPE_CHECKING:
    pass


def serve_dashboard(
    url: str, *, host: str, port: int, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Show a storage in a browser until interrupted.

    Args:
        url: of the storage.
        host: to listen at.
        port: likewise.
        on_ready: called when the storage is open.

    Raises:
        InputError: the storage cannot be used.
        UsageError: the address is taken.
    """
    import optuna
    from optuna_dashboard import run_server
    from sqlalchemy.exc import SQLAlchemyError

    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise InputError(f"{path} does not exist; `budgetplan recommend` makes studies")
    check_file(url)
    try:
        storage = optuna.storages.get_storage(url)
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        raise unusable(url, error) from error
    on_ready()
    try:
        run_server(storage, host=host, port=port)
    except OSError as error:
        raise UsageError(f"cannot serve at {host}:{port} ({error.strerror or error})") from error
