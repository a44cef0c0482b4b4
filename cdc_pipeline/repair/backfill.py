"""Backfills: past days of the landing zone, from the best source that still has them.

Time covered by the log and present in the lake is left alone. Missing parts are added, once:

- Objects that are gone from the lake and whose records are still in the stream (24 h) are landed
  again from it: the same rows with their identity, generation and position.
- Older lost objects are a gap, "objects lost", healed from an incremental export of their time. Its
  lines are the last change of each item in that time; earlier changes are not known any more, so
  history has fewer versions there.
- The time before capture began is a gap, too, "before capture", healed in the same way as far back
  as recovery reaches. Its lines land in `PAST_GENERATION`, which is before every baseline, so `cdc`
  and `history` show them and no state does.
- Where AWS writes the changes to S3, the folders of the day are listed first, and objects that the
  log lacks are landed from there (`capture.firehose.drain`).

Each of these is one log entry: objects, gap, heal, and the replaced objects. So no step is ever
half done; a killed run leaves objects in no entry, which maintenance removes, and the next run
requests the same export by the same token.

**The place of a line that replaces lost rows.** It must be after all earlier writes of its item and
before all later ones, in any order of landing; in a later generation it would beat newer changes.
So it is placed directly after the item's last surviving change written up to the line's time: in
the generation of that change, at its position with the line's time appended. Without such a change
in the generation of the lost rows, the line is placed at the beginning of that generation:
positions of a time are smaller than those of any sequence number, and larger than the snapshot's. A
line is not landed if a surviving change in its window is the same change or a later one. Items that
changed in the window, are in no line and did not change later may have been deleted without a trace
(an insert and a delete within a window leave no line): they are read by key, as in a heal.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path

from cdc_pipeline.aws.export import (
    INCREMENTAL,
    request_incremental,
)
from cdc_pipeline.aws.table import TableDescription, describe_backups, describe_table
from cdc_pipeline.capture.firehose.drain import capture_files
from cdc_pipeline.capture.run import capture_options
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.source_choice import followed_source
from cdc_pipeline.core.changes.change import Change, from_read_item
from cdc_pipeline.core.clock import day_of, time_text, utc
from cdc_pipeline.core.errors import (
    CaptureConflictError,
    CdcPipelineError,
    ExportError,
    NotCoveredError,
    NotReadyError,
)
from cdc_pipeline.core.items.attributes import to_json
from cdc_pipeline.core.log.entries import PAST_GENERATION, Gap, Heal, HealWindow, LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.names import day_folder
from cdc_pipeline.core.plans.backfill import BackfillPlan, Fill, plan_day, span_of
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.core.plans.heal import Backups
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.core.transports import IN_FILES, READ
from cdc_pipeline.lake.engine.duckdb_session import open_duckdb
from cdc_pipeline.lake.glue_partitions import register_days
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.landing import write_days
from cdc_pipeline.lake.storage.log import CaptureLog, Parts, new_nonce
from cdc_pipeline.repair.heal import heal_gap
from cdc_pipeline.repair.incremental_export import export_changes, wait_until_restorable
from cdc_pipeline.repair.placement import Placement, place_after, surviving_objects
from cdc_pipeline.repair.relanding import reland
from cdc_pipeline.snapshot.export import (
    describe_own_export,
    export_manifest,
    export_target,
    export_token,
    is_whole,
    wait_for_export,
)

_ATTEMPTS = 5
_REQUEST_AGAIN = "remove the cause and materialise the day again; it requests a new export"


@dataclass
class BackfilledDay:
    """A day after its backfill. `added`: rows landed by the backfill, from `sources`.

    `error`: why the backfill failed; `notes`: what is incomplete although it succeeded.
    """

    day: date
    rows: int = 0
    bytes: int = 0
    objects: int = 0
    added: int = 0
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: CdcPipelineError | None = None


def backfill_days(
    table: TableLake,
    days: Iterable[date],
    *,
    context: RunContext = SILENT,
) -> Iterator[BackfilledDay]:
    """Land the missing parts of past days; yield each day, oldest first, also failed ones.

    The log is read and the lake is listed once for all days, and their exports run in parallel.
    Safe to kill at any moment and to run twice at once. Raises `SourceError` and `LakeError` for
    failures of all days.
    """
    yield from _Backfill(table, sorted(set(days)), context).run()


class _Backfill:
    """One run. `state`: the log as read so far; `lost`: objects gone from the lake, by day."""

    def __init__(
        self,
        table: TableLake,
        days: list[date],
        context: RunContext,
    ) -> None:
        self.table = table
        self.context = context
        self.log: CaptureLog = table.log
        self.state: LogState = self.log.load()
        self.results = {day: BackfilledDay(day) for day in days}
        if table.settings.transport in IN_FILES:
            self._take_files()
        self.lost = self._find_lost()
        self.plans: dict[date, BackfillPlan] = {}
        self.exports: dict[Fill, str] = {}

    def run(self) -> Iterator[BackfilledDay]:
        if not self.results:
            return
        if any(self.lost.values()):
            self._reland()
        for day in self.results:
            self._attempt(day, self._prepare)
        for day, result in self.results.items():
            if result.error is None:
                self._attempt(day, self._carry_out)
            objects = self.state.objects_of_day(day.isoformat())
            result.rows = sum(landed.rows for landed in objects)
            result.bytes = sum(landed.bytes for landed in objects)
            result.objects = len(objects)
            yield result

    def _attempt(self, day: date, step: Callable[[date], None]) -> None:
        """Do one step of a day; a failed day does not stop the others."""
        try:
            step(day)
        except CdcPipelineError as error:
            self.results[day].error = error

    def _take_files(self) -> None:
        """Land objects in the folders of the days that the log lacks, however late they came."""
        for day, result in self.results.items():
            before = self._rows(day)
            capture_files(self.table, capture_options(self.table.lake), day=day)
            self.log.catch_up(self.state)
            result.added = self._rows(day) - before
            result.sources += ["files"] if result.added else []

    # Lost objects

    def _find_lost(self) -> dict[date, list[LandedObject]]:
        """Objects of the days that are in the log but not in the lake."""
        by_day: dict[str, list[LandedObject]] = {}
        for landed in self.state.objects.values():
            by_day.setdefault(landed.day, []).append(landed)
        wanted = [day for day in self.results if day.isoformat() in by_day]
        present = self._listed(wanted)
        return {
            day: [o for o in by_day.get(day.isoformat(), ()) if o.key not in present]
            for day in self.results
        }

    def _listed(self, days: list[date]) -> set[str]:
        """Object keys in the folders of some days: one listing, as days are usually adjacent."""
        if not days:
            return set()
        zone = self.log.paths.landing
        last, present = zone + day_folder(days[-1]), set()
        for key in self.table.lake.store.list(zone, after=zone + day_folder(days[0])):
            if key > last and not key.startswith(last):
                break
            present.add(key)
        return present

    def _reland(self) -> None:
        """Land lost objects again from the stream, as far as it has them; exports give the rest."""
        lost = [landed for objects in self.lost.values() for landed in objects]
        settings = self.table.lake.settings.capture
        if self.state.stream is None:
            return
        source = followed_source(self.table, self.state.stream)
        for group in reland(self.log, self.state, lost, source, settings, self.context.sleep):
            day = date.fromisoformat(group.lost[0].day)
            if self._append(group.objects, group.lost):
                self.results[day].added += group.rows
                self.results[day].sources.append("stream")
            replaced = {landed.key for landed in group.lost}
            self.lost[day] = [o for o in self.lost[day] if o.key not in replaced]

    # One day

    def _prepare(self, day: date) -> None:
        """Plan the day and request its exports: all days' run in parallel (AWS allows 300)."""
        if self._is_left_to_files(day):
            self.results[day].notes.append(
                "before capture began the day has only the delivered files, which cannot be proven "
                "complete"
            )
            begin_us, end_us = span_of(day)
            gaps = self.state.open_gaps()
            gaps = [g for g in gaps if g.from_us < end_us and g.to_us > begin_us]
            self.plans[day] = BackfillPlan(gaps=gaps)
            return
        now_us, margin_us = self.log.now_us(), self.log.margin_us
        plan = plan_day(self.state, day, self.lost[day], self._backups, now_us, margin_us)
        self.results[day].notes += plan.notes
        live = self.state.staged
        is_before_capture = any(not fill.lost for fill in plan.fills)
        if is_before_capture and live is not None and live.generation == PAST_GENERATION:
            raise NotCoveredError(
                f"the lake of {self.table.name} was made by an earlier version: its baseline is in "
                f"generation {PAST_GENERATION}, the one of days before capture",
                fix=f"materialise {self.table.safe_name}/pitr_export and publish it first",
            )
        for fill in plan.fills:
            wait_until_restorable(self.table, fill.window.to_us, self.context)
            self.exports[fill] = self._request(fill)
        self.plans[day] = plan

    def _is_left_to_files(self, day: date) -> bool:
        """Whether delivered files have a day from before capture, so that no export is needed."""
        return (
            self.table.settings.transport in IN_FILES
            and not self.lost[day]
            and self._rows(day) > 0
            and day <= day_of(self.state.began_us)
        )

    def _carry_out(self, day: date) -> None:
        plan, result = self.plans[day], self.results[day]
        for fill in plan.fills:
            self.context.progress(
                f"{day}: filling in changes written {_range(fill)} from an export"
            )
            added = self._fill(fill)
            result.added += added
            result.sources += ["export"] if added else []
        for gap in plan.gaps:
            self._heal(gap, result)

    def _heal(self, gap: Gap, result: BackfilledDay) -> None:
        if self.table.settings.heal == "ask":
            result.notes.append(
                f"the gap of entry {gap.entry} is open, and the settings have `heal: ask`: "
                f"cdc-pipeline heal {self.table.safe_name}"
            )
            return
        before = self._rows(result.day)
        try:
            heal_gap(self.table, gap, context=self.context)
        except NotReadyError as error:
            result.notes.append(error.message)
        self.log.catch_up(self.state)
        added = self._rows(result.day) - before
        result.added += added
        result.sources += ["heal"] if added else []

    def _rows(self, day: date) -> int:
        return sum(landed.rows for landed in self.state.objects_of_day(day.isoformat()))

    # Exports

    @cached_property
    def _described(self) -> TableDescription:
        return describe_table(self.table.source, self.table.name)

    @cached_property
    def _backups(self) -> Backups | None:
        backups = describe_backups(self.table.source, self.table.name)
        if backups.earliest is None:
            return None
        least_us = int(self.table.lake.settings.export.least_window_minutes * 60_000_000)
        return Backups(int(backups.earliest.timestamp() * 1_000_000), least_us)

    def _request(self, fill: Fill) -> str:
        """Request a fill's export, or find the one that an earlier run requested.

        A failed or damaged one is skipped: the next attempt has another token, and AWS returns the
        same export for a token for eight hours.
        """
        for attempt in range(_ATTEMPTS):
            arn = request_incremental(
                self.table.source,
                self._described.arn,
                (utc(fill.window.from_us), utc(fill.window.to_us)),
                export_target(self.table),
                export_token(
                    self._described.table_id,
                    "backfill",
                    fill.window.from_us,
                    fill.window.to_us,
                    attempt,
                ),
            )
            status = describe_own_export(self.table, arn, self._described.table_id)
            is_damaged = status.status == "COMPLETED" and not is_whole(self.table.lake, status)
            if status.status != "FAILED" and not is_damaged:
                return arn
        raise ExportError(
            f"{_ATTEMPTS} exports of {_range(fill)} of table {self.table.name} failed, or their "
            "files are damaged or gone",
            fix="see their reasons: aws dynamodb list-exports; new ones start after eight hours",
        )

    def _fill(self, fill: Fill) -> int:
        """Land the lines of an export that the lake lacks; return their number."""
        try:
            return self._fill_from(self.exports[fill], fill)
        except ExportError as error:
            raise ExportError(error.message, fix=error.fix or _REQUEST_AGAIN) from error

    def _fill_from(self, arn: str, fill: Fill) -> int:
        table_id = self._described.table_id
        status = wait_for_export(self.table, arn, table_id, self.context)
        manifest = export_manifest(self.table.lake, status, table_id, INCREMENTAL)
        self.log.catch_up(self.state)
        present = set(self.table.lake.store.list(self.log.paths.landing))
        objects: list[LandedObject] = []
        with (
            tempfile.TemporaryDirectory() as folder,
            open_duckdb(self.table.lake, Path(folder)) as duck,
        ):
            placing = Placement(
                duck, self.table.lake, fill, surviving_objects(self.state, fill, present)
            )
            lines = (
                change
                for file in manifest.files
                for change in export_changes(
                    self.table.lake, status, file, self._described.table_id
                )
            )
            placing.load(lines, Path(folder))
            for generation, changes in placing.changes():
                objects += self._land(generation, changes)
            reread = self._reread(placing, fill) if fill.lost else []
        for generation in sorted({generation for generation, _ in reread}):
            read = [change for read_in, change in reread if read_in == generation]
            objects += self._land(generation, read)
        window = HealWindow(
            fill.window.from_us,
            fill.window.to_us,
            export_arn=status.arn,
            files=tuple(file.key for file in manifest.files),
            done=True,
        )
        if not self._append(objects, fill.lost, fill, Heal(0, (window,), len(reread), True)):
            return 0
        return sum(landed.rows for landed in objects)

    def _reread(self, placing: Placement, fill: Fill) -> list[tuple[int, Change]]:
        """Read items perhaps deleted without a trace; return rows for those that have changed."""
        suspects = {suspect.keys: suspect for suspect in placing.suspects()}
        pace = self.table.lake.settings.capture.reads_per_second
        reader = ItemReader(self.table.source, self.table.name, self._described.key_names, pace)
        time_us = fill.span[1] - 1
        rows = []
        for keys, item in reader.read(suspects).items():
            if item is None or to_json(item) != suspects[keys].image:
                place = place_after(suspects[keys].place, time_us)
                read_position = f"{place.position}.{READ}"
                row = from_read_item(self._described.table_id, keys, item, time_us, read_position)
                rows.append((place.generation, row))
        return rows

    def _land(self, generation: int, changes: Sequence[Change]) -> list[LandedObject]:
        erased = Suppressions(self.state.erasures.values())
        kept = [c for c in changes if not erased.is_suppressed(c.keys, c.write_time_us)]
        keys = partial(self.log.paths.backfilled, nonce=new_nonce())
        return write_days(self.log.store, kept, keys, generation, self.log.now_us())

    def _append(
        self,
        objects: Sequence[LandedObject],
        lost: Sequence[LandedObject],
        fill: Fill | None = None,
        heal: Heal | None = None,
    ) -> bool:
        """Log new objects in place of lost ones; return False if another run was faster."""
        erasures = dict(self.state.erasures)

        def require_no_erasure(_: object) -> None:
            if self.state.erasures != erasures:
                self.log.store.delete(landed.key for landed in objects)
                raise CaptureConflictError(
                    f"table {self.table.name}: an item was erased while this backfill landed",
                    fix="materialise the day again: it lands without the item",
                )

        def parts(state: LogState) -> Parts | None:
            if not self._is_needed(lost, fill):
                return None
            return {
                "objects": tuple(objects),
                "replaced": tuple(landed.key for landed in lost),
                "gap": _gap(fill) if fill else None,
                "heal": replace(heal, gap=state.n + 1) if heal else None,
            }

        if self.log.commit(self.state, parts, overtaken=require_no_erasure):
            register_days(self.table, {date.fromisoformat(o.day) for o in objects})
            return True
        self.log.store.delete(landed.key for landed in objects)
        return False

    def _is_needed(self, lost: Sequence[LandedObject], fill: Fill | None) -> bool:
        if lost:
            return all(landed.key in self.state.objects for landed in lost)
        return fill is not None and not any(
            gap.cause == "before capture"
            and gap.from_us < fill.span[1]
            and gap.to_us > fill.span[0]
            for gap in self.state.gaps.values()
        )


def _gap(fill: Fill) -> Gap:
    if not fill.lost:
        return Gap("before capture", (), *fill.span, PAST_GENERATION)
    return Gap("objects lost", (), *fill.span, min(o.generation for o in fill.lost))


def _range(fill: Fill) -> str:
    begin, end = map(time_text, fill.span)
    return f"from {begin} to {end} UTC"
