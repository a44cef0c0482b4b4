"""Lists of tables in CSV files: rows by column name, and invalid rows."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

POSITIONS = ("name", "region", "role_arn", "transport", "owner")
"""Columns of a file without a header."""


@dataclass(frozen=True)
class TableRow:
    """One table of a list. `line`: its line in the file, from 1; `values`: cells with text."""

    line: int
    values: dict[str, str]


@dataclass(frozen=True)
class RowProblem:
    """An invalid row, and the reason."""

    line: int
    why: str


@dataclass(frozen=True)
class TableList:
    """The rows of a list, and those that could not be read. `source`: its file, for messages."""

    source: str
    rows: Sequence[TableRow]
    unread: Sequence[RowProblem] = ()


def read_rows(text: str, columns: Sequence[str]) -> tuple[list[TableRow], list[RowProblem]]:
    """Read the rows of a CSV file; returns valid rows, and rows with too many cells.

    Separators: comma, semicolon or tab. The first row is a header if it contains only `columns`,
    with `name` among them. Empty rows and rows that begin with # are skipped.
    """
    lines = text.removeprefix("\ufeff").splitlines()
    rows = [
        (number, [cell.strip() for cell in cells])
        for number, cells in _cells(lines)
        if any(map(str.strip, cells))
    ]
    header: Sequence[str] = POSITIONS
    if rows and _is_header(rows[0][1], columns):
        header = [cell.lower() for cell in rows.pop(0)[1]]
    good: list[TableRow] = []
    bad: list[RowProblem] = []
    for number, cells in rows:
        if any(cells[len(header) :]):
            names = ", ".join(header)
            bad.append(RowProblem(number, f"{len(cells)} cells, but the columns are {names}"))
        else:
            values = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
            good.append(TableRow(number, values))
    return good, bad


def _cells(lines: Sequence[str]) -> Iterable[tuple[int, list[str]]]:
    numbered = [(n, line) for n, line in enumerate(lines, 1) if not line.lstrip().startswith("#")]
    first = next((line for _, line in numbered if line.strip()), "")
    separator = max(",;\t", key=first.count)
    for number, line in numbered:
        yield from ((number, cells) for cells in csv.reader([line], delimiter=separator))


def _is_header(cells: Sequence[str], columns: Sequence[str]) -> bool:
    names = [cell.lower() for cell in cells]
    return "name" in names and set(names) <= set(columns)
