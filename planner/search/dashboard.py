"""The pages of optuna-dashboard for a storage, and the file of a study that is named.

optuna-dashboard 0.21 checks neither ``Host`` nor ``Origin``, and 17 of its routes write. So it is
never served as it is: ``planner.service.dashboard_server`` stands before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from planner.search.backends import check_shared_storage, journal_path, new_storage
from planner.search.storage import (
    STUDY_FOLDER,
    check_file,
    newest_storage,
    storage_errors,
    study_storage,
)
from planner.search.storage_url import mask_url, sqlite_path
from planner.search.study_notes import artifact_folder
from profiler.errors import InputError

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication


def dashboard_storage(study: str | None) -> str:
    """Return the URL of the studies to show.

    Args:
        study: name of a study in ``studies/``, path of a database file, or URL; None for the
            newest file in ``studies/``.

    Raises:
        InputError: there is no such study.
    """
    if study is None:
        return newest_storage()
    if "://" in study:
        return study
    for path in (STUDY_FOLDER / f"{study}.db", Path(study)):
        if path.is_file():
            return study_storage(path)
    known = sorted(path.stem for path in STUDY_FOLDER.glob("*.db"))
    raise InputError(
        f"there is no study {mask_url(study)!r} in {STUDY_FOLDER}/ and no such file; "
        f"{'use one of ' + ', '.join(known[-5:]) if known else '`budgetplan recommend` makes one'}"
    )


def dashboard_app(url: str) -> WSGIApplication:
    """Return optuna-dashboard's application for a storage.

    Raises:
        InputError: the storage cannot be used.
    """
    import optuna
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    check_shared_storage(url)
    path = sqlite_path(url) or journal_path(url)
    if path is not None and not path.exists():
        raise InputError(f"{path} does not exist; `budgetplan recommend` creates studies")
    check_file(url)
    folder = artifact_folder(url)
    store = None if folder is None else FileSystemArtifactStore(base_path=folder)
    with storage_errors(url):
        storage = optuna.storages.get_storage(new_storage(url))
        app: WSGIApplication = wsgi(storage, artifact_store=store)
    return app


def other_studies(url: str) -> Iterable[str]:
    """Return the names of the other files in ``studies/``, newest first."""
    shown = sqlite_path(url)
    files = [path for path in STUDY_FOLDER.glob("*.db") if path != shown]
    return [path.stem for path in sorted(files, key=lambda p: p.stat().st_mtime, reverse=True)]
