"""Gap healing: lost changes from incremental exports, landed in the gap's own generation.

The generation is later than all changes landed before the gap and earlier than all landed after it,
so a heal has no deadline: it never beats newer changes (docs/aws_facts.md, healing).
"""

import random
import tempfile
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from cdc_pipeline.aws.export import (
    INCREMENTAL,
    DataFile,
    ExportStatus,
    request_incremental,
)
from cdc_pipeline.aws.table import TableDescription
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.source_choice import described_table
from cdc_pipeline.core.changes.change import Change, from_read_item
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.clock import time_text, utc
from cdc_pipeline.core.errors import (
    CannotHealError,
    CaptureConflictError,
    ExportError,
    NotReadyError,
    RunningExportError,
    UnusableExportError,
)
from cdc_pipeline.core.log.entries import Gap, Heal, HealWindow, LandedObject
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.heal import RECREATED
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.core.transports import READ
from cdc_pipeline.core.workers import Workers
from cdc_pipeline.lake.engine.duckdb_session import landed_relation, open_duckdb
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.log import CaptureLog, new_nonce
from cdc_pipeline.repair.heal_plans import (
    cannot_heal_error,
    earliest_us,
    open_gaps,
    plan_heal,
    planned_heals,
    windows_of,
)
from cdc_pipeline.repair.incremental_export import batches, export_changes, wait_until_restorable
from cdc_pipeline.repair.landing_parts import LandedHeal, land_changes, landed_by_workers
from cdc_pipeline.snapshot.export import (
    export_manifest,
    export_target,
    export_token,
    wait_for_export,
)
from cdc_pipeline.snapshot.snapshot import SnapshotResult, take_snapshot

_BASELINES = 3
_LINE_BYTES = 1_000
"""Size of a line of an export, about, by which engine `auto` decides."""

_PAUSE_SECONDS = (0.2, 2.0)
"""Bounds of the random pause before continuing after another run's heal."""


@dataclass
class HealResult:
    """Healed gaps, by the entries that opened them.

    `lines`: items changed in the gaps; `reread`: items read again by key.
    """

    gaps: tuple[int, ...]
    windows: int
    lines: int
    reread: int
    seconds: float


def close_gaps(
    table: TableLake, *, context: RunContext = SILENT
) -> Iterator[HealResult | SnapshotResult]:
    """Heal every open gap; take a new baseline for gaps that incremental exports cannot heal.

    Reports the plan and its cost first. Raises the errors of `heal_gap` and `take_snapshot`.
    """
    for _ in range(_BASELINES):
        try:
            for planned in planned_heals(table):
                context.progress(str(planned))
            yield from heal_all(table, context=context)
            return
        except CannotHealError as error:
            context.progress(error.message)
            # A baseline begun before the gap is finished first; it does not close the gap.
            yield take_snapshot(table, context=context)


def heal_all(table: TableLake, *, context: RunContext = SILENT) -> Iterator[HealResult]:
    """Heal every open gap, oldest first; raises the errors of `heal_gap`."""
    while gaps := open_gaps(table):
        yield heal_gap(table, gaps[0], context=context)


def heal_gap(
    table: TableLake,
    gap: Gap,
    *,
    context: RunContext = SILENT,
) -> HealResult:
    """Heal a gap and the gaps that overlap it, or resume their heal; safe to kill at any moment.

    The steps of a killed run are continued: unusable exports are requested again, windows before
    the earliest time of recovery are planned again. Two heals at once continue from each other's
    entries. Raises `CannotHealError` if only a new baseline helps, `NotReadyError` if capture has
    not passed the gap's end yet, `ExportError`, `SourceError`, `LakeError`.
    """
    started, lines = time.monotonic(), 0
    described = described_table(table)
    while True:
        healing = _Healing(table, gap, described, context)
        try:
            healing.run()
            break
        except CaptureConflictError as conflict:
            context.progress(conflict.message)
            context.sleep(random.uniform(*_PAUSE_SECONDS))
        finally:
            lines += healing.lines
    heal = healing.heal
    return HealResult(
        gaps=(*heal.also, heal.gap),
        windows=len(heal.windows),
        lines=lines,
        reread=heal.reread or 0,
        seconds=time.monotonic() - started,
    )


class _Healing:
    """One run of one heal. `heal`: its progress, as in the log."""

    def __init__(
        self,
        table: TableLake,
        gap: Gap,
        described: TableDescription,
        context: RunContext,
    ) -> None:
        self.table = table
        self.described = described
        self.context = context
        self.log: CaptureLog = table.log
        self.state: LogState = self.log.load()
        self.lines = 0
        self._require_same_table(gap)
        logged = self.state.heal_of(gap.entry)
        self.heal = logged or plan_heal(table, self.state, gap)
        self.gap = self.state.gaps[self.heal.gap]
        if logged is None:
            self._record(self.heal)

    def run(self) -> None:
        while (number := self._unfinished()) is not None:
            self._export(number)
        if not self.heal.healed:
            self._require_captured()
            if self.heal.reread is None:
                self._reread()
            self._record(replace(self.heal, healed=True))

    def _require_same_table(self, gap: Gap) -> None:
        """Raise unless the table is still the one of the gap: exports of another cannot heal it."""
        stream = self.state.stream
        if stream is not None and stream.table_id != self.described.table_id:
            raise NotReadyError(
                f"table {self.table.name} was deleted and created again, and capture follows the "
                "former one",
                fix="run the job `capture`, then heal again",
            )
        if any(g.cause == RECREATED for n, g in self.state.gaps.items() if n > gap.entry):
            raise cannot_heal_error(
                self.table.settings, gap, "the table was deleted and created again since"
            )

    def _unfinished(self) -> int | None:
        windows = enumerate(self.heal.windows)
        return next((number for number, window in windows if not window.done), None)

    def _export(self, number: int) -> None:
        """Heal one window: request its export unless it was requested, then land its files."""
        window = self.heal.windows[number]
        where = f"window {number + 1} of {len(self.heal.windows)}"
        if window.export_arn is None:
            if window.from_us < earliest_us(self.table):
                self._plan_again()
                return
            wait_until_restorable(self.table, window.to_us, self.context)
            arn = request_incremental(
                self.table.source,
                self.described.arn,
                (utc(window.from_us), utc(window.to_us)),
                export_target(self.table),
                # All runs request the same export for the same attempt at the same window.
                export_token(
                    self.described.table_id, self.gap.entry, window.from_us, window.attempt
                ),
            )
            window = self._move(number, replace(window, export_arn=arn))
        try:
            assert window.export_arn is not None  # it was requested
            status = wait_for_export(
                self.table,
                window.export_arn,
                self.described.table_id,
                self.context.within(where),
            )
            self._land_export(number, status, where)
        except RunningExportError:
            raise
        except UnusableExportError as error:
            self.context.progress(f"{where}: {error.message}; the window is exported again")
            self._give_up(number)
        except ExportError as error:
            if error.__cause__ is not None:
                raise  # AWS could not be asked
            self._give_up(number)
            raise ExportError(
                error.message,
                fix=f"cdc-pipeline heal {self.table.safe_name}: it requests a new export of the "
                "same window",
            ) from error

    def _land_export(self, number: int, status: ExportStatus, where: str) -> None:
        """Land the remaining files of a window's export."""
        window = self.heal.windows[number]
        manifest = export_manifest(self.table.lake, status, self.described.table_id, INCREMENTAL)
        discarded_files = set(window.files) - {file.key for file in manifest.files}
        known = self._landed(window) if discarded_files else set()
        files = [file for file in manifest.files if file.key not in window.files]
        # What landed from another export is left out by its identity, which is in this memory.
        size = 0 if known else sum(file.items for file in files) * _LINE_BYTES
        start_workers = self.table.start_workers(size) if size else None
        work = f"{self.table.paths.work}heal-{self.gap.entry}-{new_nonce()}/spark/"
        try:
            with start_workers(work) if start_workers else nullcontext() as workers:
                for file, objects in self._landed_files(status, files, known, workers):
                    self.lines += file.items
                    landed = replace(window, files=(*window.files, file.key))
                    window = self._move(number, landed, objects)
                    self.context.progress(
                        f"{where}: {len(window.files)} of {len(manifest.files)} files landed"
                    )
        finally:
            # Never used again: after a conflict, the objects of an answer are deleted.
            self.log.store.delete(list(self.log.store.list(work)) if start_workers else ())
        self._move(number, replace(window, done=True))

    def _landed_files(
        self,
        status: ExportStatus,
        files: Sequence[DataFile],
        known: Container[str],
        workers: Workers | None,
    ) -> Iterator[tuple[DataFile, list[LandedObject]]]:
        """Yield the landing objects of each file, without the changes that are `known`."""
        table_id = self.described.table_id
        if workers is not None:
            yield from landed_by_workers(
                self.table, workers, status, files, table_id, self._landing()
            )
            return
        for file in files:
            changes = export_changes(self.table.lake, status, file, table_id)
            yield file, self._land(c for c in changes if c.uuid not in known)

    def _plan_again(self) -> None:
        """Plan the windows again: recovery does not reach back to one that was not exported yet.

        A window that was lengthened to begin before its gap may begin later. Raises
        `CannotHealError` if that does not help, or if a part has landed.
        """
        windows = self.heal.windows
        gaps = [self.state.gaps[n] for n in (*self.heal.also, self.heal.gap)]
        if any(window.files or window.done or window.export_arn for window in windows):
            why = "point-in-time recovery does not reach back to the rest of the gap any more"
            raise cannot_heal_error(self.table.settings, self.gap, why)
        attempt = max(window.attempt for window in windows)
        planned = windows_of(self.table, gaps)
        windows = tuple(replace(window, attempt=attempt) for window in planned)
        self._record(replace(self.heal, windows=windows))

    def _give_up(self, number: int) -> None:
        """Drop an unusable export; its landed files stay in the lake and in the log."""
        window = self.heal.windows[number]
        self._move(number, replace(window, export_arn=None, attempt=window.attempt + 1))

    def _landed(self, window: HealWindow) -> set[str]:
        """Identities of a window's lines that landed from a dropped export.

        Another export of the same window has the same lines, in other files. Memory: about 130
        bytes per line.
        """
        generation = self.gap.heal_generation
        objects = [
            landed
            for landed in self.state.objects.values()
            if landed.generation == generation
            and landed.min_write_us < window.to_us
            and landed.max_write_us >= window.from_us
        ]
        with (
            tempfile.TemporaryDirectory() as folder,
            open_duckdb(self.table.lake, Path(folder)) as duck,
        ):
            rows = duck.execute(
                f"SELECT uuid FROM {landed_relation(duck, self.table.lake, objects)}"
            )
            return {uuid for (uuid,) in rows.fetchall()}

    def _land(self, changes: Iterable[Change]) -> list[LandedObject]:
        """Write landing objects in batches; they become valid with a log entry."""
        return land_changes(self.table, self._landing(), changes)

    def _landing(self) -> LandedHeal:
        erased = list(self.state.erasures.values())
        generation = self.gap.heal_generation
        return LandedHeal(self.gap.entry, generation, self.log.now_us(), erased)

    def _reread(self) -> None:
        """The ghost rule: read again the items that changed in the log but are in no export.

        An insert and a delete within a window leave no line. If the insert landed and the delete
        was lost, the item would stay for ever.
        """
        settings = self.table.lake.settings.capture
        reader = ItemReader(
            self.table.source,
            self.table.name,
            self.described.key_names,
            settings.reads_per_second,
        )
        until_us = self.heal.windows[-1].to_us - 1
        suspects = self._suspects()
        self.context.progress(f"reading {len(suspects)} items that are not in the exports")
        read_position = f"{position(0, until_us)}.{READ}"
        rows = (
            from_read_item(self.described.table_id, keys, item, until_us, read_position)
            for batch in batches(suspects)
            for keys, item in reader.read(batch).items()
        )
        objects = self._land(rows)
        self._record(replace(self.heal, reread=len(suspects)), objects)

    def _suspects(self) -> list[str]:
        """Keys changed in the windows before the gap, not deleted, and without later changes."""
        start, end = self.heal.windows[0].from_us, self.heal.windows[-1].to_us
        self.log.catch_up(self.state)
        objects = list(self.state.objects.values())
        later = [o for o in objects if o.generation >= self.gap.heal_generation]
        before = [
            o
            for o in objects
            if o.generation < self.gap.heal_generation
            and o.max_write_us >= start
            and o.min_write_us < end
        ]
        with (
            tempfile.TemporaryDirectory() as folder,
            open_duckdb(self.table.lake, Path(folder)) as duck,
        ):
            touched = landed_relation(duck, self.table.lake, before)
            seen = landed_relation(duck, self.table.lake, later)
            rows = duck.execute(
                f"SELECT keys FROM {touched} AS touched "
                f"WHERE write_time_us >= {start} AND write_time_us < {end} "
                f"AND NOT EXISTS (SELECT 1 FROM {seen} AS seen WHERE seen.keys = touched.keys) "
                "GROUP BY keys HAVING arg_max(op, order_key) <> 'D' ORDER BY keys"
            ).fetchall()
        return [keys for (keys,) in rows]

    def _require_captured(self) -> None:
        """Raise `NotReadyError` until capture has passed the end of the windows.

        A heal completes the table up to there, so capture must have, too. Items are read again only
        after that: changes after the gap come from the stream.
        """
        end_us = self.heal.windows[-1].to_us
        self.log.catch_up(self.state)
        if self.state.watermark_us - self.log.margin_us < end_us:
            raise NotReadyError(
                f"table {self.table.name}: the exports of the gap have landed; capture is at "
                f"{time_text(self.state.watermark_us)} UTC and must pass {time_text(end_us)} UTC",
                fix="run the job `capture`, then heal again",
            )

    def _move(
        self, number: int, window: HealWindow, objects: list[LandedObject] | None = None
    ) -> HealWindow:
        windows = list(self.heal.windows)
        windows[number] = window
        self._record(replace(self.heal, windows=tuple(windows)), objects)
        return window

    def _record(self, heal: Heal, objects: list[LandedObject] | None = None) -> None:
        """Log a step; raises `CaptureConflictError` if another heal logged one first."""
        before, erasures = self._logged_heals(heal), dict(self.state.erasures)
        landed = tuple(objects or ())

        def require_no_conflict(_: object) -> None:
            if self._logged_heals(heal) != before:
                why = f"another run heals the gap of entry {self.gap.entry}, too"
            elif landed and self.state.erasures != erasures:
                why = "an item was erased while this heal landed"
            else:
                return
            self.log.store.delete(o.key for o in landed)
            raise CaptureConflictError(f"table {self.table.name}: {why}")

        parts = {"heal": heal, "objects": landed}
        self.log.commit(self.state, lambda _: parts, overtaken=require_no_conflict)
        self.heal = heal

    def _logged_heals(self, heal: Heal) -> list[Heal | None]:
        """Heals in the log of the gaps of a heal."""
        return [self.state.heal_of(gap) for gap in (*heal.also, heal.gap)]
