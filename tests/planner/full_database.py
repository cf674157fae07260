"""A SQLite database that cannot grow, as on a full disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

LARGEST = 2**30
"""Pages that SQLite allows by default, rounded down."""


@contextmanager
def full_database() -> Iterator[None]:
    """Let no SQLite database of this process take a page beyond those that it has.

    SQLite raises the limit to the size of the file. It holds for one connection, so each gets it
    when it is taken out of its pool.
    """

    def limit(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA max_page_count=1")

    def lift(connection: Any, *_: object) -> None:
        if connection is not None:
            connection.execute(f"PRAGMA max_page_count={LARGEST}")

    event.listen(Pool, "checkout", limit)
    event.listen(Pool, "checkin", lift)
    try:
        yield
    finally:
        event.remove(Pool, "checkout", limit)
        event.remove(Pool, "checkin", lift)
