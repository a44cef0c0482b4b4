"""Order of an export's lines among the changes of their items that the lake still holds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.log.entries import PAST_GENERATION, LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.backfill import Fill, Span
from cdc_pipeline.core.plans.heal import SECOND_US
from cdc_pipeline.lake.engine.duckdb_session import files_relation, landed_relation
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.landing import LANDING_SCHEMA, landing_table
from cdc_pipeline.repair.incremental_export import BATCH_ROWS, batches

# Events without images do not contain the item; the reads that complete them do.
_HAS_IMAGE = "(op = 'D' OR new_image IS NOT NULL)"


@dataclass(frozen=True)
class ChangePlace:
    """A generation and a position in it: the order of a change."""

    generation: int
    position: str


@dataclass(frozen=True)
class Suspect:
    """An item perhaps deleted without a trace: place and image of its last surviving change."""

    keys: str
    place: ChangePlace
    image: str


class Placement:
    """The lines of one fill in a DuckDB connection, beside the surviving changes of their items."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        lake: Lake,
        fill: Fill,
        surviving: Sequence[LandedObject],
    ) -> None:
        self._connection = connection
        self._fill = fill
        survivors = landed_relation(connection, lake, surviving)
        connection.execute(
            f"CREATE TEMP VIEW survivors AS SELECT * FROM {survivors} WHERE {_HAS_IMAGE}"
        )

    def load(self, changes: Iterable[Change], folder: Path) -> int:
        """Load the export's lines through files in `folder`; return their number."""
        files, rows = [], 0
        for number, batch in enumerate(batches(changes)):
            path = folder / f"lines-{number}.parquet"
            pq.write_table(landing_table(batch, 0), path)
            files.append(str(path))
            rows += len(batch)
        lines = files_relation(self._connection, files, LANDING_SCHEMA)
        self._connection.execute(f"CREATE TEMP VIEW lines AS SELECT * FROM {lines}")
        return rows

    def changes(self) -> Iterator[tuple[int, list[Change]]]:
        """Yield generations with their changes to land: lines of the span that are not covered.

        A surviving change covers a line if it is in the window and later than the line, or of the
        same second (times of streams are whole seconds) with the same image. Changes that land
        after a fill are compared when a day of `cdc` is built (`transform/sql/told.sql`).
        """
        start, end = self._fill.window.from_us, self._fill.window.to_us
        self._connection.execute(
            "CREATE TEMP TABLE places AS SELECT lines.uuid, "
            "max(s.order_key) FILTER (WHERE s.write_time_us <= lines.write_time_us) AS before, "
            f"coalesce(bool_or(s.write_time_us >= {start} AND s.write_time_us < {end} AND ("
            "s.write_time_us > lines.write_time_us OR ("
            f"s.write_time_us // {SECOND_US} = lines.write_time_us // {SECOND_US} "
            "AND s.new_image IS NOT DISTINCT FROM lines.new_image))), false) AS is_covered "
            "FROM lines LEFT JOIN survivors AS s ON s.keys = lines.keys GROUP BY lines.uuid"
        )
        cursor = self._connection.execute(
            f"SELECT before, {', '.join(f'lines.{name}' for name in Change._fields)} "
            "FROM lines JOIN places ON places.uuid = lines.uuid WHERE NOT is_covered "
            f"AND write_time_us >= {self._fill.span[0]} AND write_time_us < {self._fill.span[1]}"
        )
        while rows := cursor.fetchmany(BATCH_ROWS):
            placed: dict[int, list[Change]] = {}
            for before, *values in rows:
                change = Change(*values)
                place = self._place(change, before)
                moved = change._replace(position=place.position)
                placed.setdefault(place.generation, []).append(moved)
            yield from placed.items()

    def _place(self, change: Change, before: str | None) -> ChangePlace:
        """Place of a line; `before`: order key of the item's last surviving change up to it."""
        if not self._fill.lost:
            return ChangePlace(PAST_GENERATION, change.position)
        generation = _generation_at(self._fill.lost, change.write_time_us)
        if before is None or _split(before).generation < generation:
            return ChangePlace(generation, position(0, change.write_time_us))
        return place_after(_split(before), change.write_time_us)

    def suspects(self) -> list[Suspect]:
        """List items whose very last change survived, is in the span, and is in no line."""
        rows = self._connection.execute(
            "SELECT keys, max(order_key), arg_max(new_image, order_key) FROM survivors AS s "
            "WHERE NOT EXISTS (SELECT 1 FROM lines WHERE lines.keys = s.keys) GROUP BY keys "
            f"HAVING max(write_time_us) >= {self._fill.span[0]} "
            f"AND max(write_time_us) < {self._fill.span[1]} AND arg_max(op, order_key) <> 'D'"
        ).fetchall()
        return [Suspect(keys, _split(order_key), image) for keys, order_key, image in rows]


def place_after(place: ChangePlace, time_us: int) -> ChangePlace:
    """Return the place directly after another; several are in the order of their times."""
    return ChangePlace(place.generation, f"{place.position}.{time_us:017d}")


def surviving_objects(state: LogState, fill: Fill, present: set[str]) -> list[LandedObject]:
    """List the existing objects with changes to compare a fill's lines with."""
    start, end = fill.window.from_us, fill.window.to_us
    kept = [o for o in state.objects.values() if o.key in present and o not in fill.lost]
    if not fill.lost:
        return [o for o in kept if _overlaps(o, (start, end))]
    first = min(landed.generation for landed in fill.lost)
    return [o for o in kept if o.generation >= first or _overlaps(o, (start, end))]


def _overlaps(landed: LandedObject, span: Span) -> bool:
    return landed.min_write_us < span[1] and landed.max_write_us >= span[0] // SECOND_US * SECOND_US


def _generation_at(lost: Sequence[LandedObject], time_us: int) -> int:
    """Lowest generation in which a change of that time may have been lost.

    A generation too low does no harm: the line is still after the item's earlier changes, and
    before those of later generations.
    """
    second = time_us // SECOND_US * SECOND_US
    return min(
        (o.generation for o in lost if o.min_write_us <= time_us and second <= o.max_write_us),
        default=min(o.generation for o in lost),
    )


def _split(order_key: str) -> ChangePlace:
    generation, _, position_in_it = order_key.partition(".")
    return ChangePlace(int(generation), position_in_it)
