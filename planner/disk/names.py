"""File names made from text of unknown origin."""

from __future__ import annotations

import unicodedata

LONGEST_NAME_BYTES = 180
"""Longest file name that is made, in bytes. File systems allow 255, and drafts add a prefix."""


def safe_file_name(text: str, *, otherwise: str) -> str:
    """Return a text as the name of a file or folder that cannot leave its folder or be hidden.

    Path separators and control characters are replaced. Leading dots would hide the file or name
    the parent folder, and a leading dash would make it an option of other programs.

    Args:
        text: text of unknown origin.
        otherwise: name if nothing of the text can be kept.
    """
    kept = "".join("_" if c in "/\\" or unicodedata.category(c)[0] == "C" else c for c in text)
    encoded = kept.strip().lstrip(".-~").encode()[:LONGEST_NAME_BYTES]
    return encoded.decode(errors="ignore").strip() or otherwise
