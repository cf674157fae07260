"""Notes and plan files of a study, as optuna-dashboard shows them.

optuna-dashboard keeps notes in system attributes of the study, in pieces that fit the columns of
every database; notes of trials too, because a finished trial takes no more attributes. Files are
Optuna artifacts of the study, beside its SQLite file. A study in another database has none, because
there is no folder that every reader of the database sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from planner.search.problem import assignment_key
from planner.search.storage_url import sqlite_path
from planner.search.study_lock import opened_study

if TYPE_CHECKING:
    from optuna import Study
    from optuna.artifacts import FileSystemArtifactStore

PIECE_CHARACTERS = 2045
"""Longest piece of a note: ``SYSTEM_ATTR_MAX_LENGTH`` of optuna-dashboard 0.21."""

ARTIFACT_PREFIX = "artifacts:"
"""Beginning of the system attribute of an artifact, ``ARTIFACTS_ATTR_PREFIX`` of Optuna."""


def artifact_folder(url: str) -> Path | None:
    """Return the folder of a storage's files; None if it has none."""
    path = sqlite_path(url)
    return None if path is None else path.with_suffix(".artifacts")


def annotate_study(
    url: str, name: str, *, note: str, trial_notes: Mapping[str, str], files: Sequence[Path]
) -> None:
    """Write the notes of a study and its trials, and add plan files as artifacts.

    Args:
        url: SQLAlchemy URL of the storage.
        name: name of the study.
        note: note of the study, in Markdown.
        trial_notes: note of a trial by its ``assignment_key``. The notes of all other trials that
            have one are emptied: an earlier answer may have named them.
        files: plan files. A file that the study has already, by name and content, is not added
            again. A new content is added beside the earlier one of the same name.

    Raises:
        InputError: the storage cannot be used.
    """
    with opened_study(url, name) as study:
        _write_note(study, "", note)
        written = study._storage.get_study_system_attrs(study._study_id)
        for trial in study.get_trials(deepcopy=False):
            text = trial_notes.get(assignment_key(trial.params), "")
            if text or f"dashboard:{trial._trial_id}:note_ver" in written:
                _write_note(study, f"{trial._trial_id}:", text)
        _add_files(study, artifact_folder(url), files)


def _write_note(study: Study, owner: str, text: str) -> None:
    """Write a note as ``save_note_with_version`` of optuna-dashboard does.

    Args:
        study: the study.
        owner: the trial's identifier and a colon, or nothing for the study itself.
        text: the note.
    """
    storage, number = study._storage, study._study_id
    known = storage.get_study_system_attrs(number)
    version = f"dashboard:{owner}note_ver"
    prefix = f"dashboard:{owner}note_str:"
    pieces = [text[i : i + PIECE_CHARACTERS] for i in range(0, len(text), PIECE_CHARACTERS)]
    stale = sum(key.startswith(prefix) for key in known) - len(pieces)
    for index, piece in enumerate([*pieces, *[""] * stale]):
        storage.set_study_system_attr(number, f"{prefix}{index}", piece)
    storage.set_study_system_attr(number, version, int(known.get(version, 0)) + 1)


def _add_files(study: Study, folder: Path | None, files: Sequence[Path]) -> None:
    from optuna.artifacts import FileSystemArtifactStore, upload_artifact

    if folder is None or not files:
        return
    folder.mkdir(parents=True, exist_ok=True)
    store = FileSystemArtifactStore(base_path=folder)
    known = {
        (meta["filename"], _artifact_content(store, meta["artifact_id"]))
        for meta in _artifacts(study)
    }
    for file in files:
        if (file.name, file.read_bytes()) not in known:
            upload_artifact(artifact_store=store, file_path=str(file), study_or_trial=study)


def _artifacts(study: Study) -> list[dict[str, str]]:
    """Return the artifacts of a study, without the deleted ones.

    optuna-dashboard overwrites the attribute of a deleted artifact with null, on which
    ``optuna.artifacts.get_all_artifact_meta`` fails.
    """
    attributes = study._storage.get_study_system_attrs(study._study_id)
    found = [json.loads(v) for k, v in attributes.items() if k.startswith(ARTIFACT_PREFIX)]
    return [meta for meta in found if meta is not None]


def _artifact_content(store: FileSystemArtifactStore, artifact_id: str) -> bytes | None:
    """Return the content of an artifact; None if its file is gone or cannot be read."""
    from optuna.artifacts.exceptions import ArtifactNotFound

    try:
        with store.open_reader(artifact_id) as file:
            return file.read()
    except (ArtifactNotFound, OSError, ValueError):  # ValueError: a name outside the folder
        return None
