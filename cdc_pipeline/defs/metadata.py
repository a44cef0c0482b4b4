"""What materialisations tell: numbers that plot, and column schemas."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.clock import now_us, time_text
from cdc_pipeline.core.items.columns import SYSTEM_COLUMNS, Column, ColumnChange
from cdc_pipeline.core.log.coverage import HOUR_SIGNS, Stretch, hour_bars
from cdc_pipeline.settings.model import ColumnRule, Table

TIMELINE_DAYS = 14

_SYSTEM_DESCRIPTIONS = {
    "_key": "the item's key, exact typed DynamoDB JSON",
    "_order_key": "which change the item is from",
    "_write_time_us": "when it was written, µs since the epoch",
    "_item": "the whole item, exact typed DynamoDB JSON",
    "_rescued": "values whose type is not their column's, by attribute",
}


def typed_columns(columns: Iterable[Column]) -> dg.TableSchema:
    """The column schema of a typed item table, as inferred from its data."""
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
    """A column schema from names and Arrow types."""
    return dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in fields])


def landing_columns(more: Iterable[tuple[str, str, str]] = ()) -> dg.TableSchema:
    """The landing columns, and columns that follow them."""
    columns = [(c.name, c.type, c.description) for c in LANDING_COLUMNS]
    return dg.TableSchema(columns=[dg.TableColumn(*column) for column in (*columns, *more)])


def column_changes(changes: list[ColumnChange] | None, columns: Iterable[Column]) -> dict[str, Any]:
    """How many columns there are, and what became of those of the version before, if anything."""
    told: dict[str, Any] = {"columns": len(list(columns))}
    if changes:
        rows = [
            (c.kind, repr(c.attribute), *(_type(side) for side in (c.before, c.after)))
            for c in changes
        ]
        told["column_changes"] = grid(("change", "attribute", "before", "after"), rows)
    return told


def _type(column: Column | None) -> str:
    return f"{column.name} {column.type}" if column else ""


def column_rules(table: Table, unseen: Iterable[str]) -> dict[str, Any]:
    """The table's column rules, and which of them name attributes that no item had so far."""
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
    """A table in Markdown, whatever its cells hold."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in cells))


def timeline(stretches: Sequence[Stretch]) -> dg.MarkdownMetadataValue:
    """The coverage ledger: the last days as bars, and every stretch in words."""
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
    table = grid(("from (UTC)", "to", "from what", ""), rows).value
    return dg.MetadataValue.md(f"```\n{bars}\n\nan hour a sign: {legend}\n```\n\n{table}")


def lag_seconds(watermark_us: int) -> float | None:
    """How far the lake is behind the source, None while that is unknown."""
    if not watermark_us:
        return None
    return round(max(0.0, (now_us() - watermark_us) / 1_000_000), 1)


def moment(time_us: int) -> dg.TimestampMetadataValue:
    """A time in µs as metadata."""
    return dg.MetadataValue.timestamp(time_us / 1_000_000)


def known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without the entries that have no value."""
    return {name: value for name, value in metadata.items() if value is not None}
