"""Metadata of materialisations: numbers for plots, column schemas, tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.clock import now_us, time_text
from cdc_pipeline.core.items.columns import SYSTEM_COLUMNS, Column, ColumnChange
from cdc_pipeline.core.log.coverage import HOUR_SIGNS, CoverageRange, hour_bars
from cdc_pipeline.settings.table import ColumnRule, Table

if TYPE_CHECKING:
    from cdc_pipeline.lake.publish.cdc import CdcDay
    from cdc_pipeline.lake.publish.current_state import PublishResult
    from cdc_pipeline.lake.publish.entity_tables import EntityTable
    from cdc_pipeline.lake.publish.ttl_archive import ArchiveDay
    from cdc_pipeline.lake.query.aggregates import AggregateResult
    from cdc_pipeline.snapshot.snapshot import SnapshotResult

TIMELINE_DAYS = 14

_SYSTEM_DESCRIPTIONS = {
    "_key": "the item's key, exact typed DynamoDB JSON",
    "_order_key": "order key of the item's last change",
    "_write_time_us": "time of the write, µs since the epoch",
    "_item": "the whole item, exact typed DynamoDB JSON",
    "_rescued": "values of another type than their column, by attribute",
}


def snapshot_metadata(result: "SnapshotResult") -> dict[str, Any]:
    """Describe a full export in `pitr_export`."""
    return {
        "dagster/row_count": result.items,
        "bytes": result.bytes,
        "files": result.files,
        "seconds": round(result.seconds, 2),
        "generation": result.generation,
        "export_time": moment(result.export_time_us),
        "export_arn": result.export_arn,
        "dagster/column_schema": typed_columns(result.columns),
        **known({"global_table": result.global_note}),
    }


def cdc_day_metadata(built: "CdcDay") -> dict[str, Any]:
    """Describe one day of `cdc`."""
    return {
        "dagster/partition_row_count": built.rows,
        "duplicates_removed": built.duplicates,
        "objects": built.objects,
        "watermark": built.watermark,
        "seconds": round(built.seconds, 2),
    }


def archive_day_metadata(built: "ArchiveDay") -> dict[str, Any]:
    """Describe one day of `ttl_archive`."""
    return {
        "dagster/partition_row_count": built.rows,
        "without_image": built.unknown,
        "watermark": built.watermark,
        "seconds": round(built.seconds, 2),
    }


def state_metadata(table: Table, result: "PublishResult") -> dict[str, Any]:
    """Describe a publication of `current_state`."""
    return known(
        {
            "dagster/row_count": result.items,
            "changes_folded": result.changes_folded,
            "new_baseline": result.new_baseline,
            "rebuilt": result.rebuilt,
            "generation": result.generation,
            "watermark": result.watermark,
            "open_gaps": result.open_gaps,
            "complete_up_to": moment(result.watermark_us),
            "lag_seconds": lag_seconds(result.watermark_us),
            "seconds": round(result.seconds, 2),
            "dagster/table_name": ".".join(result.table.name()),
            "dagster/uri": result.table.location(),
            "dagster/column_schema": typed_columns(result.columns),
            **column_changes(result.changes, result.columns),
            **column_rules(table, result.unseen_rules),
        }
    )


def entity_metadata(result: "EntityTable") -> dict[str, Any]:
    """Describe a publication of an entity's table."""
    return known(
        {
            "dagster/row_count": result.items,
            "unchanged": result.unchanged,
            "seconds": round(result.seconds, 2),
            "dagster/uri": result.table.location(),
            "dagster/column_schema": typed_columns(result.columns),
        }
    )


def aggregate_metadata(results: Sequence["AggregateResult"], seconds: float) -> dict[str, Any]:
    """Describe an aggregate: the rows of all days built, or of the whole table."""
    return {
        "dagster/row_count": sum(result.rows for result in results),
        "seconds": round(seconds, 2),
        "dagster/column_schema": arrow_columns(results[-1].columns if results else ()),
    }


def typed_columns(columns: Iterable[Column]) -> dg.TableSchema:
    """Return the column schema of a typed item table, as inferred from its data."""
    system = [
        dg.TableColumn(name, "int64" if name.endswith("_us") else "string", description)
        for name, description in ((n, _SYSTEM_DESCRIPTIONS[n]) for n in SYSTEM_COLUMNS)
    ]
    inferred = [
        dg.TableColumn(c.name, c.type, f"attribute {c.attribute!r}, DynamoDB type {c.tag}")
        for c in columns
    ]
    return dg.TableSchema(columns=system + inferred)


def arrow_columns(fields: Iterable[tuple[str, str]]) -> dg.TableSchema:
    """Return a column schema of (name, Arrow type) pairs."""
    return dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in fields])


def landing_columns(more: Iterable[tuple[str, str, str]] = ()) -> dg.TableSchema:
    """Return the schema of the landing columns, followed by `more` (name, type, description)."""
    columns = [(c.name, c.type, c.description) for c in LANDING_COLUMNS]
    return dg.TableSchema(columns=[dg.TableColumn(*column) for column in (*columns, *more)])


def column_changes(changes: list[ColumnChange] | None, columns: Iterable[Column]) -> dict[str, Any]:
    """Return the number of columns and, if any changed, the changes since the version before."""
    metadata: dict[str, Any] = {"columns": len(list(columns))}
    if changes:
        rows = [
            (c.kind, repr(c.attribute), *(_type(side) for side in (c.before, c.after)))
            for c in changes
        ]
        metadata["column_changes"] = grid(("change", "attribute", "before", "after"), rows)
    return metadata


def _type(column: Column | None) -> str:
    return f"{column.name} {column.type}" if column else ""


def column_rules(table: Table, unseen: Iterable[str]) -> dict[str, Any]:
    """Return the table's column rules, and whether any item has had their attribute so far."""
    missing = set(unseen)
    rows = [
        (repr(name), _rule(rule), "no" if name in missing else "yes")
        for name, rule in sorted(table.columns.items())
    ]
    return {"column_rules": grid(("attribute", "rule", "seen"), rows)} if rows else {}


def _rule(rule: ColumnRule) -> str:
    if rule.type:
        return f"type {rule.type}"
    return "hash" if rule.hash else "drop" if rule.drop else "mask"


def grid(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> dg.MarkdownMetadataValue:
    """Return a Markdown table; `|` in cells is escaped."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in cells))


def timeline(stretches: Sequence[CoverageRange]) -> dg.MarkdownMetadataValue:
    """Return the coverage ledger: the last 14 days as bars, and a table of all stretches."""
    legend = "  ".join(f"{sign} {means}" for means, sign in HOUR_SIGNS.items())
    bars = "\n".join(hour_bars(stretches, TIMELINE_DAYS))
    rows = [
        (
            time_text(s.from_us) if s.from_us else "the beginning",
            time_text(s.to_us),
            s.means,
            s.note,
        )
        for s in stretches
    ]
    table = grid(("from (UTC)", "to", "origin", ""), rows).value
    return dg.MetadataValue.md(f"```\n{bars}\n\none sign per hour: {legend}\n```\n\n{table}")


def lag_seconds(watermark_us: int) -> float | None:
    """Return the lag of the lake behind the source in seconds, None while unknown."""
    if not watermark_us:
        return None
    return round(max(0.0, (now_us() - watermark_us) / 1_000_000), 1)


def moment(time_us: int) -> dg.TimestampMetadataValue:
    """Return a time in µs since the epoch as metadata."""
    return dg.MetadataValue.timestamp(time_us / 1_000_000)


def known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata without entries whose value is None."""
    return {name: value for name, value in metadata.items() if value is not None}
