"""Comparison of current_state with its source, item by item, by exact typed value."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cdc_pipeline.aws.table import describe_table, scan_items, wire_form
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.lake.engine.duckdb_session import arrow_batches, identifier
from cdc_pipeline.lake.engine.masking import masking_of
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.query.connection import connect_lake

_BATCH_ROWS = 20_000


@dataclass(frozen=True)
class Comparison:
    """Number of items compared and of differences by kind. `examples`: keys of up to 10."""

    items: int
    missing: int
    unexpected: int
    different: int
    examples: list[str]

    @property
    def differences(self) -> int:
        """Number of items that differ between the two sides."""
        return self.missing + self.unexpected + self.different


def compare_with_source(table: TableLake) -> Comparison:
    """Compare every item of `current_state` with a consistent Scan of a source without writes.

    Both sides are canonical typed JSON, so numbers are compared by value and sets by content. The
    source's items are masked by the settings' rules. Holds them in memory: for the demo and tests,
    not for big tables.
    """
    key_names = describe_table(table.source, table.name).key_names
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    source = {
        masking.item(_key(item, key_names)): masking.item(to_json(item))
        for item in _canonical_scan(table)
    }
    compared, unexpected, different = len(source), 0, 0
    examples: list[str] = []
    with connect_lake(table.lake, [table.settings.label], aggregates=False) as connection:
        sql = f"SELECT _key, _item FROM {identifier(table.safe_name)}.current_state"
        for batch in arrow_batches(connection, sql, _BATCH_ROWS):
            for key, item in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                expected = source.pop(key, None)
                if expected == item:
                    continue
                unexpected += expected is None
                different += expected is not None
                examples.append(key)
    examples += list(source)
    return Comparison(compared, len(source), unexpected, different, examples[:10])


def _key(item: dict[str, Any], key_names: tuple[str, ...]) -> str:
    return to_json({name: item[name] for name in sorted(key_names)})


def _canonical_scan(table: TableLake) -> Iterator[dict[str, Any]]:
    for item in scan_items(table.source, table.name):
        yield canonical_item(wire_form(item))
