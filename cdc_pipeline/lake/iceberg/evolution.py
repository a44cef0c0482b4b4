"""Changes of a table's schema: by new rows beside old ones, or by rows that replace all."""

from collections.abc import Collection
from datetime import date
from typing import Any

import pyarrow as pa
from pyiceberg.table import Table, Transaction
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.update import (
    AssertCurrentSchemaId,
    AssertRefSnapshotId,
    RemoveSchemasUpdate,
)

from cdc_pipeline.core.errors import LakeError


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast the column; raise `pa.ArrowInvalid` if a value would change."""
    if pa.types.is_integer(column.type) and pa.types.is_decimal(kind):
        # Arrow requires a precision for any integer of the type, regardless of the values.
        column = column.cast(pa.decimal128(38, kind.scale))
    return column.cast(kind)


def listed_days(days: Collection[date]) -> str:
    """Return days as a list in a row filter."""
    return "(" + ", ".join(f"'{day.isoformat()}'" for day in sorted(days)) + ")"


def other_days(table: Table, days: Collection[date], schema: pa.Schema) -> pa.Table | None:
    """Return the rows of all other days in `schema` if it changes a column's type, else None."""
    present = table.schema().as_arrow()
    kept = [field for field in present if field.name in schema.names]
    if not has_rows(table) or all(_has_same_type(f, schema.field(f.name)) for f in kept):
        return None
    rows = table.scan(row_filter=f"day NOT IN {listed_days(days)}").to_arrow()
    if not rows.num_rows:
        return None
    columns = []
    for field in schema:
        if field.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        try:
            columns.append(_cast(rows.column(field.name), field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            other_type = rows.column(field.name).type
            raise LakeError(
                f"table {'.'.join(table.name())}: column {field.name} of {min(days)} is "
                f"{field.type}, which cannot hold the {other_type} of other days",
                fix="cast it in the SQL to a type that holds both",
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def has_rows(table: Table) -> bool:
    """Whether the present version has data files."""
    snapshot = table.current_snapshot()
    summary = snapshot.summary if snapshot else None
    return summary is not None and summary["total-data-files"] != "0"


def forget_schemas(table: Table) -> None:
    """Drop schemas without a snapshot: each new attribute adds one, and Iceberg keeps them all."""
    metadata = table.metadata
    used = {s.schema_id for s in metadata.snapshots} | {metadata.current_schema_id}
    unused = sorted({schema.schema_id for schema in metadata.schemas} - used)
    if unused:
        with table.transaction() as transaction:
            # The commit fails if another writer adds a snapshot meanwhile.
            same = AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=metadata.current_snapshot_id)  # type: ignore[call-arg]
            schema = AssertCurrentSchemaId(current_schema_id=metadata.current_schema_id)  # type: ignore[call-arg]
            removed = RemoveSchemasUpdate(schema_ids=unused)  # type: ignore[call-arg]
            transaction._stage((removed,), (same, schema))


def evolve(transaction: Transaction, schema: pa.Schema) -> None:
    """Give the table the schema of rows that replace all its rows.

    A column keeps its field id if its type stays or Iceberg has a promotion for the change.
    Otherwise it is dropped and added again; older snapshots are read with their own schema.
    """
    present = transaction.table_metadata.schema().as_arrow()
    changed = [
        field
        for field in present
        if field.name in schema.names and not _has_same_type(field, schema.field(field.name))
    ]
    readded = [f.name for f in changed if not _promotes(f.type, schema.field(f.name).type)]
    removed = [f.name for f in present if f.name not in schema.names]
    if readded or removed:
        with transaction.update_schema(allow_incompatible_changes=True) as update:
            for column in readded + removed:
                update.delete_column((column,))
    if changed or any(name not in present.names for name in schema.names):
        with transaction.update_schema() as update:
            update.union_by_name(schema)


def holds(table: Table, schema: pa.Schema) -> bool:
    """Whether rows of `schema` fit beside the table's present rows, which keep their files."""
    return all(
        field.name in schema.names
        and (
            _has_same_type(field, schema.field(field.name))
            or _promotes(field.type, schema.field(field.name).type)
        )
        for field in table.schema().as_arrow()
    )


def _promotes(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether Iceberg's type promotion lets readers of the new type read old values."""
    if _is_list(old) and _is_list(new):
        return _promotes(old.value_type, new.value_type)
    if isinstance(old, pa.Decimal128Type) and isinstance(new, pa.Decimal128Type):
        return old.scale == new.scale and old.precision < new.precision
    return pa.types.is_int32(old) and pa.types.is_int64(new)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _has_same_type(one: pa.Field, other: pa.Field) -> bool:
    return _plain(one.type) == _plain(other.type)


def _plain(kind: pa.DataType) -> Any:
    """Return a type without `large_`: Iceberg returns large strings, binaries and lists."""
    if _is_list(kind):
        return ("list", _plain(kind.value_type))
    return str(kind).removeprefix("large_")
