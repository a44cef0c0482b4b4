"""A local lake filled by hand: log entries, landing objects and baselines, without any AWS."""

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cdc_pipeline.core.changes.change import Change, stream_identity
from cdc_pipeline.core.changes.fold import KeyedChange, Row, fold
from cdc_pipeline.core.changes.fold import items as live
from cdc_pipeline.core.changes.order import SNAPSHOT_POSITION, order_key, position
from cdc_pipeline.core.items.attributes import canonical_item, plain_json, to_json
from cdc_pipeline.core.log.entries import Baseline, ShardState, StreamRef
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline.lake.engine.duckdb_session import arrow_table, open_duckdb
from cdc_pipeline.lake.engine.item_table import column_names, replace_typed
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.query.query import connect_for
from cdc_pipeline.lake.storage.landing import write_landing
from cdc_pipeline.lake.storage.log import new_nonce
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.shred import NARROW_SCHEMA

MARGIN_US = 2_000_000
"""The lake's handover margin."""

START_US = int(time.time()) // 3600 * 3_600_000_000
"""Close to now."""

_DEPTH = 1


def key_of(name: str) -> dict[str, Any]:
    """The key attribute of an item."""
    return {"pk": {"S": name}}


@dataclass
class LakeBuilder:
    """One table of a local lake, and its state as `core.changes.fold` has it (`expected`)."""

    lake: Lake
    state: LogState = field(default_factory=LogState)
    expected: dict[str, Row] = field(default_factory=dict)
    changes: list[tuple[int, Change]] = field(default_factory=list)

    @staticmethod
    def at(folder: Path, **settings: Any) -> "LakeBuilder":
        """An empty lake with one table, `orders`."""
        raw = {
            "lake": "lake",
            "handover_margin_seconds": MARGIN_US / 1_000_000,
            "clock_margin_seconds": 0,
            "tables": [{"name": "orders"}],
            **settings,
        }
        return LakeBuilder(Lake.open(parse_settings(raw, folder / "settings.yaml")))

    @property
    def table(self) -> Table:
        """The first table in the settings."""
        return self.lake.settings.tables[0]

    @property
    def table_lake(self) -> TableLake:
        """Its handle."""
        return self.lake.table(self.table)

    def append(self, **parts: Any) -> None:
        """The next log entry."""
        entry = Entry(0, parts.pop("nonce", new_nonce()), "test", 0, **parts)
        assert self.table_lake.log.append(self.state, entry)

    def start(self, generation: int = 1) -> None:
        """The stream of a generation, with one shard."""
        stream = StreamRef("table-id", "arn:stream", "NEW_AND_OLD_IMAGES", generation, START_US)
        shard = ShardState("shard-1", None, _DEPTH)
        self.append(stream=stream, shards=(shard,), discovered_us=START_US)

    def read_to(self, time_us: int) -> None:
        """Everything written before that time has landed."""
        shard = replace(self.state.shards["shard-1"], read_to_us=time_us)
        self.append(shards=(shard,), discovered_us=time_us)

    def stage(self, items: dict[str, dict[str, Any]], *, generation: int = 1) -> Baseline:
        """A verified baseline of these items (by key name; keys are added)."""
        at = order_key(generation, SNAPSHOT_POSITION)
        rows = {
            to_json(key_of(name)): to_json(canonical_item({**item, **key_of(name)}))
            for name, item in items.items()
        }
        narrow = pa.table(
            {
                "item_key": list(rows),
                "order_key": [at] * len(rows),
                "item": list(rows.values()),
                "write_time_us": [START_US] * len(rows),
            },
            schema=NARROW_SCHEMA,
        )
        with (
            tempfile.TemporaryDirectory() as folder,
            open_duckdb(self.lake, Path(folder)) as connection,
        ):
            connection.register("narrow", narrow)
            name = f"{self.table.safe_name}_snapshot"
            staged = replace_typed(
                self.lake.iceberg,
                name,
                connection,
                "SELECT * FROM narrow",
                {"generation": str(generation)},
                over=self.lake.iceberg.load(name),
                scratch=Path(folder),
                names=column_names(self.lake.iceberg, self.table.safe_name),
            )
        snapshot = staged.table.current_snapshot()
        assert snapshot is not None
        baseline = Baseline(
            generation=generation,
            recorded_us=START_US,
            export_time_us=START_US,
            snapshot_id=snapshot.snapshot_id,
            items=len(rows),
        )
        self.append(baseline=baseline)
        # Changes of older generations are in the export, or older than it.
        newer = (_keyed(g, change) for g, change in self.changes if g >= generation)
        self.expected = fold({key: Row(at, item) for key, item in rows.items()}, newer)
        return baseline

    def land(self, changes: Iterable[Change], *, generation: int = 1) -> None:
        """One log entry with these changes."""
        landed = list(changes)
        nonce = new_nonce()
        objects = write_landing(
            self.lake.store,
            self.table_lake.paths,
            landed,
            n=self.state.n + 1,
            nonce=nonce,
            generation=generation,
            landed_us=START_US,
        )
        self.append(objects=tuple(objects), nonce=nonce)
        self.changes += [(generation, change) for change in landed]
        self.expected = fold(self.expected, (_keyed(generation, change) for change in landed))

    def items(self) -> dict[str, str]:
        """Canonical items by canonical key, as they must be."""
        return live(self.expected)


def _keyed(generation: int, change: Change) -> KeyedChange:
    return KeyedChange(change.keys, order_key(generation, change.position), change.new_image)


def change(name: str, number: int, item: dict[str, Any] | None, *, op: str = "U") -> Change:
    """The change number `number` of the shard: the item `name` becomes `item`, None: deleted."""
    new = None if item is None else canonical_item({**item, **key_of(name)})
    return Change(
        uuid=stream_identity("table-id", f"event-{number}"),
        op="D" if new is None else op,
        write_time_us=START_US + number * 1_000_000,
        data=None if new is None else plain_json(new),
        keys=to_json(key_of(name)),
        new_image=None if new is None else to_json(new),
        old_image=None,
        position=position(_DEPTH, number),
        sequence_number=str(number),
        shard_id="shard-1",
        event_id=f"event-{number}",
        is_ttl_delete=False,
        transport=DYNAMODB_STREAMS,
    )


@contextmanager
def temporary_lake(**settings: Any) -> Iterator[LakeBuilder]:
    """A lake in a folder of its own, for examples of a property test."""
    with tempfile.TemporaryDirectory() as folder:
        yield LakeBuilder.at(Path(folder).resolve(), **settings)


def plain_view(lake: Lake, sql: str) -> list[dict[str, Any]]:
    """Rows of a query, as Python values."""
    with connect_for(lake, sql) as connection:
        return arrow_table(connection, sql).to_pylist()
