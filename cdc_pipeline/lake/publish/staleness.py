"""Staleness of derived tables, by the capture log and the tables they are made from.

It does not depend on who changed the lake or on a notification: the cause can be a run killed after
its log entry, a heal, a command. A derived table is stale by these rules:

- a day of `cdc`: objects were logged for it after its `watermark.<day>` (of a large day: a tenth of
  its rows, or `current_state.derive_minutes` after the last build), it has rows of a heal by
  the rules of an older version, or lacks the differences of a baseline of that day;
- a day of `ttl_archive`: made from another version of that day of `cdc`;
- `current_state`: changes landed after its watermark, before any open gap, or a newer baseline is
  staged; and a publication is due;
- a table of an entity: made from another version of `current_state`, or by other rules;
- an aggregate, or a day of one: the versions of its inputs (property `inputs`) have changed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date

from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.clock import now_us
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.masking import PUBLISHED
from cdc_pipeline.lake.iceberg.properties import PROPERTY, table_property
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.baseline_changes import days_to_compare
from cdc_pipeline.lake.publish.cdc import ROWS, outdated_days
from cdc_pipeline.lake.publish.current_state import is_publication_due
from cdc_pipeline.lake.publish.entity_notes import are_current, entity_mark, read_notes
from cdc_pipeline.lake.publish.entity_tables import stale_entities
from cdc_pipeline.lake.state.base import (
    advance_watermark,
    has_unpublished_changes,
    next_base,
    published_base,
)
from cdc_pipeline.settings.table import Table
from cdc_pipeline.transform.aggregates import AGGREGATES, Aggregate

INPUTS = "inputs"
"""Table property with the versions of an aggregate's inputs; daily ones have the day as suffix."""

_WATERMARK = f"{PROPERTY}watermark."
LARGE_DAY = 500_000
"""Rows of a day of `cdc` from which it is not built for less than a tenth of them at once.

Else a day of n rows would be built as often as the sensor looks, each time for n rows.
"""

_BY_DAY = {"cdc": "cdc", "history": "cdc", "ttl_archive": "ttl_archive"}
"""Views over tables built day by day, and the table of each."""


@dataclass(frozen=True)
class Stale:
    """A stale derived table. `days`: its stale days, empty for a table without days.

    `waits`: it was made less than `current_state.derive_minutes` ago.
    """

    asset: str
    days: tuple[date, ...] = ()
    waits: bool = False


def stale_cdc_days(state: LogState, watermarks: Mapping[str, int]) -> list[str]:
    """Return the days with objects logged after the watermark they were built with."""
    newest: dict[str, int] = {}
    for landed in state.objects.values():
        newest[landed.day] = max(newest.get(landed.day, 0), landed.entry)
    return sorted(day for day, entry in newest.items() if entry > watermarks.get(day, 0))


def stale_archive_days(cdc: Mapping[str, int], archive: Mapping[str, int]) -> list[str]:
    """Return the days made from another version of the same day of `cdc`."""
    return sorted(day for day, built in cdc.items() if archive.get(day) != built)


def stale_aggregate_days(
    built: Mapping[str, Mapping[str, str]], present: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return the days whose inputs, as far as in `present`, changed versions since the build."""
    return sorted(
        day
        for day, versions in present.items()
        if any(built.get(day, {}).get(name) != version for name, version in versions.items())
    )


def content_mark(state: LogState) -> str:
    """Return a text that changes when a derived table may have become stale.

    Entries that land nothing do not change it.
    """
    newest = max((o.entry for o in state.objects.values()), default=0)
    generation = state.staged.generation if state.staged else 0
    gaps = [gap.entry for gap in state.open_gaps(generation)]
    return json.dumps([newest, len(state.objects), generation, gaps, bool(state.incomplete)])


class Staleness:
    """One check of a lake's derived tables; loads each table at most once."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._tables: dict[str, IcebergTable | None] = {}
        self._states: dict[str, LogState] = {}
        self._waiting: dict[str, bool] = {}
        self._complete_us: dict[str, int] = {}

    def load(self, table: Table) -> LogState:
        """Load the state of a table's capture log."""
        self._states[table.safe_name] = self.lake.table(table).log.look()
        return self._states[table.safe_name]

    def of_table(self, table: Table) -> Iterator[Stale]:
        """Yield the stale derived tables of one table. Raises `LakeError`, `SettingsError`."""
        state, name = self._states[table.safe_name], table.safe_name
        handle = self.lake.table(table)
        if table.snapshot.first == "auto" and state.staged is None and state.shadow is None:
            yield Stale("pitr_export")
        built = self._iceberg(f"{name}_cdc")
        cdc = _watermarks(built)
        outdated = days_to_compare(self.lake, built, state)
        outdated |= outdated_days(built, state) if built else set()
        changed = stale_cdc_days(state, cdc)
        kept = [day for day in changed if self._adds_little(built, state, day, cdc.get(day, 0))]
        if days := sorted({*_dates(changed), *outdated} - {*_dates(kept)}):
            yield Stale("cdc", tuple(days))
        if table.ttl_archive:
            archive = _watermarks(self._iceberg(f"{name}_ttl_archive"))
            if days := stale_archive_days(cdc, archive):
                yield Stale("ttl_archive", _dates(days))
        try:
            base = next_base(handle, state)
        except NotReadyError:
            # Without an export nothing waits.
            is_stale, self._waiting[name] = False, state.staged is not None
        else:
            is_stale = has_unpublished_changes(base, table, state)
            # A newer baseline waits for the changes that must land before it is published.
            newest = state.staged.generation if state.staged else 0
            self._waiting[name] = is_stale or newest > base.generation
            self._complete_us[name] = int(table_property(base.table, "watermark_us") or 0)
        published = self._iceberg(f"{name}_current_state") if table.entities else None
        if (is_stale and is_publication_due(handle)) or (
            published is not None and not are_current(read_notes(handle), table, published)
        ):
            yield Stale("current_state")
        elif published is not None:
            for entity in stale_entities(handle, published):
                if self._is_recent(f"{name}_{entity}"):
                    self._waiting[name] = True
                else:
                    yield Stale(entity)
        self._waiting[name] |= bool(kept)

    def _adds_little(
        self, built: IcebergTable | None, state: LogState, day: str, watermark: int
    ) -> bool:
        """Whether a large day of `cdc`, which is built as a whole, waits for more changes."""
        rows = int((built and table_property(built, f"{ROWS}.{day}")) or 0)
        if rows < LARGE_DAY or built is None:
            return False
        fresh = sum(
            landed.rows
            for landed in state.objects.values()
            if landed.day == day and landed.entry > watermark
        )
        return fresh * 10 < rows and self._is_recent(built.name()[-1])

    def is_waiting(self, table: Table) -> bool:
        """Whether changes landed that are not worth a fold yet or cannot be published yet."""
        return self._waiting[table.safe_name]

    def complete_us(self, table: Table) -> int:
        """Return the time in µs up to which the published state is complete; 0: none published."""
        return self._complete_us.get(table.safe_name, 0)

    def advance(self, table: Table) -> None:
        """Advance the watermark of a state that lacks nothing; commits properties only."""
        state = self._states[table.safe_name]
        base = published_base(self.lake.table(table))
        if base is not None and not has_unpublished_changes(base, table, state):
            advance_watermark(self.lake, base, state)

    def of_aggregate(self, aggregate: Aggregate, today: date) -> Stale | None:
        """Return an aggregate that is stale, with its stale days; None: it is up to date.

        For a daily one, today is compared with all inputs. Earlier days are compared if they were
        built, and only with the same day of daily inputs: comparing them with all inputs would make
        every day stale after each fold.
        """
        built = self._iceberg(aggregate.table)
        waits = self._follows_a_state(aggregate) and self._is_recent(aggregate.table)
        if not aggregate.daily:
            versions = self.versions(aggregate)
            if versions and versions != _inputs(built).get(""):
                return Stale(aggregate.name, waits=waits)
            return None
        known = _inputs(built)
        present = {
            day: {name: version for name, version in versions.items() if "@" in name}
            for day in known
            if day != today.isoformat() and (versions := self.versions(aggregate, day))
        }
        if now := self.versions(aggregate, today.isoformat()):
            present[today.isoformat()] = now
        days = stale_aggregate_days(known, present)
        return Stale(aggregate.name, _dates(days), waits) if days else None

    def _follows_a_state(self, aggregate: Aggregate) -> bool:
        """Whether a published state is an input, which may change every minute."""
        return any(
            view == "current_state" or entity_mark(self.lake.settings, schema, view)
            for schema, view in aggregate.inputs
        )

    def _is_recent(self, name: str) -> bool:
        """Whether a table was made less than `derive_minutes` ago."""
        built = self._iceberg(name)
        snapshot = built.current_snapshot() if built else None
        pause_ms = self.lake.settings.current_state.derive_minutes * 60_000
        return snapshot is not None and now_us() // 1000 - snapshot.timestamp_ms < pause_ms

    def versions(self, aggregate: Aggregate, day: str | None = None) -> dict[str, str]:
        """Return the versions of an aggregate's inputs by name; empty if one is missing.

        With `day`, daily inputs have the version of that day, and their names end in `@`.
        """
        versions: dict[str, str] = {}
        known = {AGGREGATES, *(table.safe_name for table in self.lake.settings.tables)}
        for schema, view in aggregate.inputs:
            if schema not in known:
                return {}
            name, version = self._version(schema, view, day)
            if version is None:
                return {}
            versions[name] = version
        return versions

    def _version(self, schema: str, view: str, day: str | None) -> tuple[str, str | None]:
        name = f"{schema}.{view}"
        if schema == AGGREGATES:
            built = self._iceberg(f"{AGGREGATES}_{view}")
            parts = _inputs(built)
            if day is not None and "" not in parts:
                return f"{name}@", json.dumps(parts.get(day, {})) if built else None
            return name, _snapshot(built)
        if view == "raw_stream":
            objects = self._state(schema).objects.values()
            entries = [o.entry for o in objects if day in (None, o.day)]
            return (name if day is None else f"{name}@"), str(max(entries, default=0))
        if view == "pitr_export":
            staged = self._state(schema).staged
            return name, str(staged.generation) if staged else None
        if mark := entity_mark(self.lake.settings, schema, view):
            built = self._iceberg(f"{schema}_current_state")
            return name, f"{_snapshot(built)} {mark}" if built else None
        built = self._iceberg(f"{schema}_{_BY_DAY.get(view, view)}")
        if day is not None and view in _BY_DAY:
            return f"{name}@", str(_watermarks(built).get(day, 0)) if built else None
        return name, _snapshot(built)

    def _state(self, schema: str) -> LogState:
        if schema not in self._states:
            self.load(self.lake.settings.table(schema))
        return self._states[schema]

    def _iceberg(self, name: str) -> IcebergTable | None:
        if name not in self._tables:
            self._tables[name] = self.lake.iceberg.load(name)
        return self._tables[name]


def inputs_property(day: date | None) -> str:
    """Return the name of the property with the input versions of an aggregate or of its day."""
    return INPUTS if day is None else f"{INPUTS}.{day}"


def _inputs(built: IcebergTable | None) -> dict[str, dict[str, str]]:
    """Return the recorded versions of inputs by day; those of a whole table under ''.

    Days built by an old version that recorded none have an empty mapping, so they are stale.
    """
    if built is None:
        return {}
    rules = f"{PROPERTY}{PUBLISHED}."
    inputs = {name.removeprefix(rules): {} for name in built.properties if name.startswith(rules)}
    prefix = PROPERTY + INPUTS
    for name, text in built.properties.items():
        if name == prefix or name.startswith(f"{prefix}."):
            inputs[name.removeprefix(prefix).removeprefix(".")] = json.loads(text)
    return inputs


def _watermarks(built: IcebergTable | None) -> dict[str, int]:
    """Return the watermarks of a table's days."""
    properties = built.properties.items() if built else ()
    return {
        name.removeprefix(_WATERMARK): int(value)
        for name, value in properties
        if name.startswith(_WATERMARK)
    }


def _snapshot(built: IcebergTable | None) -> str | None:
    return str(built.metadata.current_snapshot_id) if built else None


def _dates(days: Iterable[str]) -> tuple[date, ...]:
    return tuple(map(date.fromisoformat, days))
