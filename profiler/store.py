"""Profiles stored on disk between runs, under a hash of everything they depend on.

A file is a NumPy ``.npz`` of plain arrays (never pickled objects). Its name is the SHA-256 of the
key, the versions of PyTorch, timm, peft, bitsandbytes and budgetplan, and the schema. A damaged
file is deleted and its profile is made again. The folder is ``$BUDGETPLAN_CACHE``, else
``~/.cache/budgetplan/profiles``.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self, TypeVar
from zipfile import BadZipFile

import numpy as np

STORE_SCHEMA = 17
"""Version of the profiles' meaning. Increase it with every change of the meaning."""

_Profile = TypeVar("_Profile")


class Store:
    """A folder of profiles.

    Args:
        folder: folder of the files; None for a store that keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def in_memory(cls) -> Self:
        """Return a store that keeps nothing."""
        return cls(None)

    @classmethod
    def default(cls) -> Self:
        """Return the store of the user's cache folder."""
        given = os.environ.get("BUDGETPLAN_CACHE")
        return cls(Path(given) if given else Path.home() / ".cache" / "budgetplan" / "profiles")

    def fetch(
        self, kind: type[_Profile], key: tuple[object, ...], make: Callable[[], _Profile]
    ) -> _Profile:
        """Return the profile stored under a key, or make and store it.

        Args:
            kind: type of the profile, a dataclass of arrays and of such dataclasses.
            key: JSON data that identifies the profiled workload and options.
            make: function that makes the profile if it is not stored.
        """
        path = self._path(key)
        if path is not None and path.is_file():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    return _unflatten(kind, dict(arrays))
            except (OSError, ValueError, KeyError, BadZipFile, EOFError):
                path.unlink(missing_ok=True)
        made = make()
        if path is not None:
            _write(path, _flatten(made))
        return made

    def holds(self, key: tuple[object, ...]) -> bool:
        """Return whether a profile is stored under a key."""
        path = self._path(key)
        return path is not None and path.is_file()

    def _path(self, key: tuple[object, ...]) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps([STORE_SCHEMA, _versions(), key], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "timm", "peft", "bitsandbytes", "budgetplan"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _flatten(record: Any, prefix: str = "") -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for spec in fields(record):
        value = getattr(record, spec.name)
        if is_dataclass(value):
            arrays |= _flatten(value, f"{prefix}{spec.name}.")
        else:
            arrays[f"{prefix}{spec.name}"] = value
    return arrays


def _unflatten(kind: type[_Profile], arrays: dict[str, Any], prefix: str = "") -> _Profile:
    from typing import get_type_hints

    values = {}
    for name, hint in get_type_hints(kind).items():
        nested = is_dataclass(hint)
        values[name] = (
            _unflatten(hint, arrays, f"{prefix}{name}.") if nested else arrays[f"{prefix}{name}"]
        )
    return kind(**values)


def _write(path: Path, arrays: dict[str, Any]) -> None:
    """Write a file atomically; do nothing if the folder cannot be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, **arrays)
        Path(file.name).replace(path)
    except OSError:
        return
