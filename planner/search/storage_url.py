"""Storage URLs as they may be shown: without passwords, tokens and user names.

The URL of a study goes into plan files, answers and messages. A URL such as
``postgresql://me:secret@host/db?sslpassword=secret`` holds secrets in two places: before the host,
and in its query. Both are masked, also in the messages of database drivers, which quote the URL or
the name of the user alone (``role "me" does not exist``).
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote_plus

MASK = "***"
"""Text in place of a secret."""

SHORTEST_SECRET = 3
"""Characters of a secret that is masked within words, too. User names are whole words."""

_SECRET_KEY = re.compile(r"pass|pwd|secret|token|key|auth|cred|odbc_connect|dsn", re.IGNORECASE)
_USER_KEY = re.compile(r"user|uid|login", re.IGNORECASE)
_FILE = re.compile(r"(?:sqlite[^:@/]*|journal):///")
_QUERY_ITEM = re.compile(r"([?&;])([^=&;?]*)=([^&]*)")


def mask_url(url: str) -> str:
    """Return a storage URL without its user, its password and the secrets in its query.

    A password may contain any character but ``@``, so all up to the last ``@`` is masked. The path
    of a file has no user.
    """
    scheme, separator, rest = _split(url)
    before, at, after = rest.rpartition("@")
    if at and before and not _FILE.match(url):
        rest = f"{MASK}@{after}"
    return scheme + separator + _QUERY_ITEM.sub(_mask_value, rest)


def mask_secrets(text: str, url: str) -> str:
    """Return a message of a database driver without the secrets of a storage URL.

    Args:
        text: message that may quote the URL or its parts.
        url: the URL.
    """
    text = text.replace(url, mask_url(url))
    secrets, users = _secrets_and_users(url)
    for part in sorted(secrets | users, key=len, reverse=True):
        is_anywhere = part in secrets and len(part) >= SHORTEST_SECRET
        pattern = re.escape(part) if is_anywhere else rf"(?<!\w){re.escape(part)}(?!\w)"
        text = re.sub(pattern, MASK, text)
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
    is_masked = _SECRET_KEY.search(key) or _USER_KEY.search(key)
    return f"{before}{key}={MASK if is_masked else value}"


def _secrets_and_users(url: str) -> tuple[set[str], set[str]]:
    """Return the secrets and the user names of a URL, as written and decoded, no empty ones."""
    _, _, rest = _split(url)
    items = [(m.group(2), m.group(3)) for m in _QUERY_ITEM.finditer(rest)]
    secrets = {value for key, value in items if _SECRET_KEY.search(key)}
    users = {value for key, value in items if _USER_KEY.search(key)}
    before, at, _ = rest.rpartition("@")
    if at and not _FILE.match(url):
        user, colon, password = before.partition(":")
        users.add(user)
        secrets |= {before, password} if colon else set()
    return _written_and_decoded(secrets), _written_and_decoded(users)


def _written_and_decoded(texts: set[str]) -> set[str]:
    return {each for raw in texts for each in (raw, unquote_plus(raw)) if each}
