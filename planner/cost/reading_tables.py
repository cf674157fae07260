"""Readings of the caching allocator by name, in memory and in the store.

A file of the store holds all readings of a family. Writing it takes time in proportion to its
length, and several processes write it: the forked processes of a search, and other commands.
Therefore

- new readings are merged into the file, under a lock of the store; it is not read for that if it
  has not changed since this process read or wrote it;
- inside ``written_together`` they are written once, at its end;
- a name that this process does not know is looked up again if the file has changed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

from profiler.store import FileVersion, Store

NameT = TypeVar("NameT", bound=Hashable)
ReadingT = TypeVar("ReadingT")


class ReadingRecord(Protocol[NameT, ReadingT]):
    """Readings by name, in the arrays that ``Store`` keeps."""

    @classmethod
    def of(cls, readings: Mapping[NameT, ReadingT]) -> Self:
        """Return the record of readings by name."""

    def readings(self) -> dict[NameT, ReadingT]:
        """Return the readings by name."""


@dataclass(slots=True, eq=False)
class _Table(Generic[NameT, ReadingT]):
    """Readings under one key of the store.

    Attributes:
        readings: all that this process knows.
        unwritten: names of readings that the file may lack.
        version: version of the file that was read last; None for no file.
    """

    readings: dict[NameT, ReadingT] = field(default_factory=dict)
    unwritten: set[NameT] = field(default_factory=set)
    version: FileVersion | None = None


class ReadingTables(Generic[NameT, ReadingT]):
    """Tables of readings, by key of the store.

    Args:
        store: store of the tables.
        kind: type of their records.
    """

    def __init__(self, store: Store, kind: type[ReadingRecord[NameT, ReadingT]]) -> None:
        self._store, self._kind = store, kind
        self._tables: dict[tuple[object, ...], _Table[NameT, ReadingT]] = {}
        self._depth = 0

    def find(self, key: tuple[object, ...], name: NameT) -> ReadingT | None:
        """Return a reading; None if neither this process nor the store has it."""
        table = self._table(key)
        if name not in table.readings:
            version = self._store.version(key)
            if version != table.version:
                stored = self._store.find(self._kind, key)
                found = {} if stored is None else stored.readings()
                table.readings = {**found, **table.readings}
                table.version = version
        return table.readings.get(name)

    def add(self, key: tuple[object, ...], name: NameT, reading: ReadingT) -> None:
        """Keep a reading, and write it unless this is inside ``written_together``."""
        table = self._table(key)
        table.readings[name] = reading
        table.unwritten.add(name)
        if self._depth == 0:
            self._write(key, table)

    @contextmanager
    def written_together(self) -> Iterator[None]:
        """Write the readings that are added inside at the end, after an error too."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for key, table in self._tables.items():
                    if table.unwritten:
                        self._write(key, table)

    def _table(self, key: tuple[object, ...]) -> _Table[NameT, ReadingT]:
        return self._tables.setdefault(key, _Table())

    def _write(self, key: tuple[object, ...], table: _Table[NameT, ReadingT]) -> None:
        def merged(
            stored: ReadingRecord[NameT, ReadingT] | None,
        ) -> ReadingRecord[NameT, ReadingT]:
            found = {} if stored is None else stored.readings()
            table.readings = {**found, **table.readings}
            return self._kind.of(table.readings)

        table.version = self._store.change(self._kind, key, merged, known=table.version)
        table.unwritten.clear()
