"""Tables that fit the terminal: columns, pages, headings, wrapped sentences.

A table that is wider than the terminal is cut into several below each other, each with the row's
key, so that no column is squeezed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from profiler.errors import InputError

Justify = Literal["left", "right"]

INDENT = 2

MOST_FACTS = 1000
"""Rows of a table of facts; a plan of unknown origin can have many more."""

NAME_COLUMNS = 26
"""Most columns of the names of facts; a longer name has a line of its own."""

WRAPPED_CELL_COLUMNS = 28
"""Least width of a column whose cells wrap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table. A column whose cells are all ``-`` is not shown.

    Attributes:
        header: header with at most two lines.
        cells: text of each row.
        justify: alignment; numbers are right-aligned, words left-aligned.
        wraps: whether a cell may take several lines.
    """

    header: str
    cells: Sequence[str]
    justify: Justify = "right"
    wraps: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether every cell is empty or ``-``."""
        return all(cell in ("", "-") for cell in self.cells)


def tables(
    columns: Sequence[Column], *, keys: int, width: int, styles: Mapping[int, str] | None = None
) -> list[Table]:
    """Arrange columns in as few tables as fit the width, the first ``keys`` columns in each.

    Args:
        columns: columns with equally many cells.
        keys: number of leading columns that name the row.
        width: columns of the terminal.
        styles: rich style by row index.
    """
    shown = [c for i, c in enumerate(columns) if i < keys or not c.is_empty]
    lead, rest = shown[:keys], shown[keys:]
    groups: list[list[Column]] = [[]]
    for column in rest:
        if groups[-1] and _width([*lead, *groups[-1], column]) > width:
            groups.append([])
        groups[-1].append(column)
    return [_rich_table(_folded([*lead, *group], width), styles or {}) for group in groups]


def _folded(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns of a table; if it is too wide, the cells of all but numbers may wrap.

    rich cuts a cell that may not wrap, without a mark.
    """
    if _width(columns) <= width:
        return list(columns)
    return [replace(c, wraps=c.wraps or c.justify == "left") for c in columns]


def _rich_table(columns: Sequence[Column], styles: Mapping[int, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            Text(column.header),
            justify=column.justify,
            no_wrap=not column.wraps,
            overflow="fold",
            # only headers have several lines, unless a cell wraps
            vertical="top" if any(c.wraps for c in columns) else "bottom",
        )
    for index, cells in enumerate(zip(*(c.cells for c in columns), strict=True)):
        table.add_row(*(Text(cell) for cell in cells), style=styles.get(index, ""))
    return table


def _width(columns: Sequence[Column]) -> int:
    """Return the width of a table, with the columns that wrap at their least width."""
    console = Console(width=10_000)
    narrow = [
        replace(c, cells=[cell[:WRAPPED_CELL_COLUMNS] for cell in c.cells]) if c.wraps else c
        for c in columns
    ]
    return Measurement.get(console, console.options, _rich_table(narrow, {})).maximum + INDENT


def wrapped_lines(text: str, width: int) -> list[str]:
    """Return the lines of a text at a width; a word that is longer is broken. Nothing is cut."""
    console = Console(width=width)
    return [line.plain.rstrip() for line in Text(text).wrap(console, width, overflow="fold")] or [
        ""
    ]


def hanging_lines(head: str, text: str, *, column: int, width: int) -> list[str]:
    """Return the lines of a text that stands behind a head, from a column on.

    A word is never broken, so that a name can be copied: one that is too long for the column has a
    line of its own, near the left edge, and may be longer than the width. A head that reaches the
    column has a line of its own, too.

    Args:
        head: beginning of the first line.
        text: the text; runs of blanks count as one.
        column: column of the text.
        width: columns of the terminal.
    """
    indent = " " * column
    is_long = cell_len(head) >= column
    lines = [head, indent] if is_long else [head + " " * (column - cell_len(head))]
    is_new = True
    for word in text.split():
        size = cell_len(word)
        if column + size > width:
            lines += [" " * max(0, min(2 * INDENT, width - size)) + word, indent]
            is_new = True
        elif is_new:
            lines[-1] += word
            is_new = False
        elif cell_len(lines[-1]) + 1 + size <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word)
    return [line.rstrip() for line in lines if line.strip()]


class Page:
    """A console with headings, indented blocks and wrapped sentences."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._console.width

    def heading(self, text: str) -> None:
        """Print a heading."""
        self._console.print()
        for line in hanging_lines("", text, column=0, width=self.width):
            self._console.print(Text(line, style="bold"), soft_wrap=True)

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """Print names and values; a value wraps behind its name, and no word is broken.

        After ``MOST_FACTS`` rows the number of the others is printed.
        """
        shown = [(name, value) for name, value in rows if value not in ("", "-")]
        longest = min(NAME_COLUMNS, self.width // 3)
        names = [cell_len(name) for name, _ in shown[:MOST_FACTS] if cell_len(name) <= longest]
        column = INDENT + max(names, default=INDENT) + 2
        for name, value in shown[:MOST_FACTS]:
            head = " " * INDENT + " ".join(name.split())
            self._hanging(head, value, column=column, style="bold")
        if len(shown) > MOST_FACTS:
            self._hanging("  ...", f"{len(shown) - MOST_FACTS} more", column=column, style="bold")

    def _hanging(self, head: str, text: str, *, column: int, style: str = "") -> None:
        first, *rest = hanging_lines(head, text, column=column, width=self.width)
        line = Text(first)
        line.stylize(style, 0, len(head))
        for each in (line, *map(Text, rest)):
            self._console.print(each, soft_wrap=True)

    def block(self, *parts: RenderableType) -> None:
        """Print parts, indented, with an empty line between two."""
        for index, part in enumerate(parts):
            if index:
                self._console.print()
            self._console.print(Padding(part, (0, 0, 0, INDENT), expand=False))

    def line(self, text: str) -> None:
        """Print a line without wrapping, so that it can be copied."""
        self._console.print(Text(f"{' ' * INDENT}{text}"), soft_wrap=True)

    def sentences(self, lines: Iterable[str]) -> None:
        """Print each sentence as a wrapped paragraph with a dash; no word is broken."""
        for line in lines:
            self._hanging("  -", line, column=2 * INDENT)


def show_table(columns: Sequence[Column], console: Console) -> None:
    """Print a list.

    Raises:
        InputError: the list is empty.
    """
    page = Page(console)
    if not columns or not columns[0].cells:
        raise InputError("there is nothing to list")
    page.block(*tables(columns, keys=1, width=page.width))
