"""The name of a weights file as a user writes it: a file, or an entry of a checkpoint in it."""

from __future__ import annotations

from pathlib import Path

ENTRY_MARK = "::"
"""Separates the file and the entry of a checkpoint in ``FILE::model_ema``."""


def split_entry(path: Path) -> tuple[Path, str | None]:
    """Return the file and the entry of ``FILE::ENTRY``; None as the entry without a mark."""
    text = str(path)
    if ENTRY_MARK not in text or path.exists():
        return path, None
    file, _, entry = text.rpartition(ENTRY_MARK)
    return Path(file), entry
