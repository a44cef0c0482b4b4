"""Adding tables to the settings and removing them: all of a list, or none."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cdc_pipeline.aws.table import describe_table
from cdc_pipeline.core.errors import CdcPipelineError, SettingsError
from cdc_pipeline.core.plans.table_list import RowProblem, TableList, TableRow, read_rows
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.edit import (
    edited_settings,
    new_text,
    with_tables,
    without_table,
    write_settings,
)
from cdc_pipeline.settings.load import parse_table, read_settings, table_columns
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.settings.table import Table, clashes

_PARALLEL = 16


def read_table_list(source: Path) -> TableList:
    """Read a CSV file with a table in each row. Raises `SettingsError`."""
    try:
        text = source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source} cannot be read: {error}") from None
    rows, problems = read_rows(text, table_columns())
    if not rows and not problems:
        raise SettingsError(f"{source} names no table", fix="write one table name per line")
    return TableList(str(source), rows, problems)


def add_tables(
    path: Path,
    listed: TableList,
    *,
    top: Mapping[str, str] | None = None,
    check: bool = True,
) -> list[Table]:
    """Add tables to the settings file at `path` and return them.

    `top`: settings of a new file. `check`: DescribeTable must find the tables. Raises
    `SettingsError` with every row that was not read or cannot be added; the file is unchanged then.
    """
    text = path.read_text("utf-8") if path.exists() else None
    before = _present(text, path)
    region = before.region if before else (top or {}).get("region")
    added, problems = _parsed(listed.rows, list(before.tables) if before else [], region)
    if listed.unread or problems:
        raise _refused(listed.source, [*listed.unread, *problems])
    raw = [table.model_dump(mode="json", exclude_unset=True) for table in added]
    edited = new_text(top or {}, raw) if text is None else with_tables(text, raw)
    tables = [*(before.tables if before else ()), *added]
    settings = edited_settings(edited, path, before, tables)
    if check:
        problems = _not_found(settings, listed.rows, added)
        if problems:
            raise _refused(
                listed.source, problems, "correct them, or add them unchecked with --no-check"
            )
    write_settings(path, edited)
    return added


def remove_table(path: Path, name: str) -> Table:
    """Remove a table from the settings file; its data stays. Raises `SettingsError`."""
    text = path.read_text("utf-8")
    before = read_settings(text, path)
    table = before.table(name)
    rest = [other for other in before.tables if other is not table]
    if not rest:
        raise SettingsError(
            f"{name} is the only table in {path}, and settings must name at least one table",
            fix=f"delete {path} instead",
        )
    edited = without_table(text, before.tables.index(table))
    edited_settings(edited, path, before, rest)
    write_settings(path, edited)
    return table


def data_uris(table: TableLake) -> list[str]:
    """Return the URIs where the lake has data of a table; touches no network."""
    paths = table.paths
    prefixes = (paths.landing, paths.quarantine, paths.backups, f"{paths.exports}/", paths.state)
    iceberg = f"iceberg/{table.lake.database}/{table.safe_name}_*/"
    return [table.lake.store.uri(prefix) for prefix in (*prefixes, iceberg)]


def _present(text: str | None, path: Path) -> Settings | None:
    """Return the present settings, None without a file or with a file without tables yet."""
    if text is None:
        return None
    try:
        return read_settings(text, path)
    except SettingsError as error:
        # The only mistake that adding tables corrects.
        lines = [line for line in error.message.splitlines()[1:] if line.strip()]
        if all(line.strip().startswith("- tables: ") for line in lines) and lines:
            return None
        raise


def _parsed(
    rows: Sequence[TableRow], present: list[Table], region: str | None
) -> tuple[list[Table], list[RowProblem]]:
    tables: list[Table] = []
    lines: list[int] = []
    problems: list[RowProblem] = []
    for row in rows:
        try:
            tables.append(parse_table(row.values))
            lines.append(row.line)
        except SettingsError as error:
            problems.append(RowProblem(row.line, error.message))
    for position, why in clashes([*present, *tables], region):
        if position >= len(present):
            problems.append(RowProblem(lines[position - len(present)], why))
    return tables, problems


def _not_found(
    settings: Settings, rows: Sequence[TableRow], tables: Sequence[Table]
) -> list[RowProblem]:
    """Return the rows whose table DescribeTable does not find."""
    lake = Lake.open(settings)

    def error_of(table: Table) -> str | None:
        try:
            describe_table(lake.table(table).source, table.name)
        except CdcPipelineError as error:
            return error.message
        return None

    with ThreadPoolExecutor(_PARALLEL) as pool:
        errors = list(pool.map(error_of, tables))
    return [RowProblem(row.line, why) for row, why in zip(rows, errors, strict=True) if why]


def _refused(
    source: str,
    problems: Sequence[RowProblem],
    fix: str = "correct these rows; all others are valid",
) -> SettingsError:
    in_order = sorted(problems, key=lambda problem: problem.line)
    lines = "\n".join(f"  row {problem.line}: {problem.why}" for problem in in_order)
    return SettingsError(f"{source}: no table was added\n{lines}", fix=fix)
