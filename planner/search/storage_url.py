"""Storage URLs as they may be shown: without passwords, tokens and user names.

The URL of a study goes into plan files, answers and messages. A URL such as
``postgresql://me:secret@host/db?sslpassword=secret`` holds secrets in two places: before the host,
and in its query. Both are masked, also in the messages of database drivers that quote the URL.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote_plus

MASK = "***"
"""Text in place of a secret."""

_SECRET_KEY = re.compile(r"pass|pwd|secret|token|key|auth|cred|odbc_connect|dsn", re.IGNORECASE)
_SQLITE_FILE = re.compile(r"sqlite[^:@/]*:///")
_QUERY_ITEM = re.compile(r"([?&;])([^=&;?]*)=([^&]*)")


def mask_url(url: str) -> str:
    """Return a storage URL without its user, its password and the secrets in its query.

    A password may contain any character but ``@``, so all up to the last ``@`` is masked. The path
    of an SQLite file has no user.
    """
    scheme, separator, rest = _split(url)
    before, at, after = rest.rpartition("@")
    if at and before and not _SQLITE_FILE.match(url):
        rest = f"{MASK}@{after}"
    return scheme + separator + _QUERY_ITEM.sub(_mask_value, rest)


def mask_secrets(text: str, url: str) -> str:
    """Return a message of a database driver without the secrets of a storage URL.

    Args:
        text: message that may quote the URL or its parts.
        url: the URL.
    """
    text = text.replace(url, mask_url(url))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def sqlite_path(url: str) -> Path | None:
    """Return the file of an SQLite URL; None for any other database."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)  # SQLAlchemy 2.1 reads %20 as a blank, and 2.0 does not
    except (ArgumentError, ValueError):
        return None
    is_file = parsed.drivername.startswith("sqlite") and parsed.database not in (None, ":memory:")
    return Path(str(parsed.database)) if is_file else None


def _split(url: str) -> tuple[str, str, str]:
    """Split a text at its first ``://``; without one, the whole text is the rest."""
    scheme, separator, rest = url.partition("://")
    return (scheme, separator, rest) if separator else ("", "", url)


def _mask_value(found: re.Match[str]) -> str:
    before, key, value = found.groups()
    return f"{before}{key}={MASK if _SECRET_KEY.search(key) else value}"


def _secrets(url: str) -> set[str]:
    """Return the parts of a URL that are masked, as written and decoded; no short or empty ones."""
    _, _, rest = _split(url)
    found = {m.group(3) for m in _QUERY_ITEM.finditer(rest) if _SECRET_KEY.search(m.group(2))}
    before, at, _ = rest.rpartition("@")
    if at and not _SQLITE_FILE.match(url):
        found |= {before, before.partition(":")[2]}
    return {each for raw in found for each in (raw, unquote_plus(raw)) if len(each) > 2}
