"""Gap healing: what a stream lost, from incremental exports, landed in the gap's own generation.

The generation is later than everything that landed before the gap and earlier than everything
behind it, so a heal may take its time: it never beats newer changes (DYNAMODB_CDC section 8).
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cdc_pipeline.aws.export import (
    INCREMENTAL,
    ExportStatus,
    describe_export,
    read_manifest,
    request_incremental,
)
from cdc_pipeline.aws.table import TableDescription, describe_backups
from cdc_pipeline.capture.completion import READ, ItemReader
from cdc_pipeline.capture.increments import (
    Progress,
    batches,
    export_changes,
    moment,
    read_row,
    wait_until_restorable,
)
from cdc_pipeline.capture.snapshot import export_target
from cdc_pipeline.capture.source import require_backups
from cdc_pipeline.capture.sources import described_table
from cdc_pipeline.core.capture_log import Entry, LogState
from cdc_pipeline.core.changes import Change
from cdc_pipeline.core.erasure import Suppressions
from cdc_pipeline.core.errors import (
    CannotHealError,
    CaptureConflictError,
    ExportError,
    NotReadyError,
    SourceError,
)
from cdc_pipeline.core.heal_plan import Backups, overlapping, plan_windows
from cdc_pipeline.core.log_parts import Gap, Heal, HealWindow, LandedObject
from cdc_pipeline.core.order import position
from cdc_pipeline.core.prices import EXPORT_USD_PER_GB, LEAST_EXPORT_BYTES
from cdc_pipeline.lake.duck import landed_relation, open_duckdb
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.landing import write_days
from cdc_pipeline.lake.log import CaptureLog, new_nonce, this_owner
from cdc_pipeline.settings import Table


@dataclass
class HealResult:
    """Healed gaps, by the entries that opened them.

    `lines`: items that changed in them; `reread`: items read again by key.
    """

    gaps: tuple[int, ...]
    windows: int
    lines: int
    reread: int
    seconds: float


@dataclass(frozen=True)
class PlannedHeal:
    """What a heal would do. `usd`: about what its exports cost, at the table's usual pace.

    Changes of [from_us, to_us) in `exports` exports; `gaps`: the entries that opened them.
    """

    gaps: tuple[int, ...]
    from_us: int
    to_us: int
    exports: int
    usd: float

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"gaps of entries {', '.join(map(str, self.gaps))}, changes from "
            f"{moment(self.from_us):%Y-%m-%d %H:%M:%S} to {moment(self.to_us):%Y-%m-%d %H:%M:%S} "
            f"UTC: {self.exports} incremental exports, about USD {self.usd:.3f} at the table's "
            "usual pace (list price of us-east-1)"
        )


def planned_heals(lake: Lake, table: Table) -> list[PlannedHeal]:
    """The heals of all open gaps, the oldest first, without beginning any.

    Raises what `heal_gap` does for gaps that exports cannot heal.
    """
    state = lake.log(table).load()
    found: dict[int, PlannedHeal] = {}
    for gap in _open(state):
        heal = state.heal_of(gap.entry) or _plan(lake, table, state, gap)
        start, end = heal.windows[0].from_us, heal.windows[-1].to_us
        changed = _bytes_per_us(state) * (end - start)
        count = len(heal.windows)
        usd = max(changed, count * LEAST_EXPORT_BYTES) / 1e9 * EXPORT_USD_PER_GB
        found[heal.gap] = PlannedHeal((*heal.also, heal.gap), start, end, count, usd)
    return list(found.values())


def _bytes_per_us(state: LogState) -> float:
    """How much is written, from what has landed and how large an item of the baseline is."""
    objects, staged = state.objects.values(), state.staged
    if not objects or staged is None or not staged.items or not staged.bytes:
        return 0.0
    # A minute at least: what a young table's first seconds saw is no pace.
    captured_us = max(state.watermark_us - state.began_us, 60_000_000)
    return sum(o.rows for o in objects) * staged.bytes / staged.items / captured_us


def _plan(lake: Lake, table: Table, state: LogState, gap: Gap) -> Heal:
    """The heal of a gap and of those that overlap it."""
    backups = describe_backups(lake.source(table), table.name)
    if backups.earliest is None:
        raise SourceError(f"table {table.name}: point-in-time recovery is off")
    least_us = int(lake.settings.export.least_window_minutes * 60_000_000)
    earliest_us = int(backups.earliest.timestamp() * 1_000_000)
    margin_us = int(lake.settings.handover_margin_seconds * 1_000_000)
    waiting = [g for g in _open(state) if state.heal_of(g.entry) is None]
    group = overlapping(gap, waiting)
    try:
        backups_us = Backups(earliest_us, least_us)
        windows = plan_windows(group, margin_us, backups_us, lake.settings.clock_margin_us)
    except CannotHealError as error:
        raise CannotHealError(
            f"table {table.name}: the gap of entry {gap.entry} cannot be healed from "
            f"incremental exports: {error.message}",
            fix=f"materialise {table.safe_name}/pitr_export: a new baseline behind it",
        ) from None
    return Heal(group[-1].entry, windows, also=tuple(g.entry for g in group[:-1]))


def open_gaps(lake: Lake, table: Table) -> list[Gap]:
    """Gaps that the newest baseline suffers from, oldest first."""
    return _open(lake.log(table).load())


def _open(state: LogState) -> list[Gap]:
    return state.open_gaps(state.staged.generation if state.staged else 0)


def heal_all(
    lake: Lake, table: Table, *, progress: Progress = lambda _: None
) -> Iterator[HealResult]:
    """Heal every open gap, the oldest first; raises what `heal_gap` does."""
    while gaps := open_gaps(lake, table):
        yield heal_gap(lake, table, gaps[0], progress=progress)


def heal_gap(
    lake: Lake,
    table: Table,
    gap: Gap,
    *,
    progress: Progress = lambda _: None,
    sleep: Callable[[float], object] = time.sleep,
) -> HealResult:
    """Heal a gap and those that overlap it, or go on healing them; safe to kill at any moment.

    Raises `CannotHealError` when only a new baseline helps, `NotReadyError` when capture has not
    come past the gap's end yet, `ExportError`, `SourceError`, `CaptureConflictError`, `LakeError`.
    """
    started = time.monotonic()
    described = described_table(lake, table)
    require_backups(lake.source(table), table.name)
    healing = _Healing(lake, table, gap, described, progress, sleep)
    healing.run()
    heal = healing.heal
    return HealResult(
        gaps=(*heal.also, heal.gap),
        windows=len(heal.windows),
        lines=healing.lines,
        reread=heal.reread or 0,
        seconds=time.monotonic() - started,
    )


class _Healing:
    """One run of one heal; `heal` is how far it is, as the log says."""

    def __init__(
        self,
        lake: Lake,
        table: Table,
        gap: Gap,
        described: TableDescription,
        progress: Progress,
        sleep: Callable[[float], object],
    ) -> None:
        self.lake, self.table = lake, table
        self.described = described
        self.progress, self.sleep = progress, sleep
        self.log: CaptureLog = lake.log(table)
        self.state: LogState = self.log.load()
        self.lines = 0
        begun = self.state.heal_of(gap.entry)
        self.heal = begun or _plan(lake, table, self.state, gap)
        self.gap = self.state.gaps[self.heal.gap]
        if begun is None:
            self._record(self.heal)

    def run(self) -> None:
        for number in range(len(self.heal.windows)):
            while not self.heal.windows[number].done:
                self._export(number)
        if not self.heal.healed:
            self._require_captured()
            if self.heal.reread is None:
                self._reread()
            self._record(replace(self.heal, healed=True))

    def _export(self, number: int) -> None:
        """One window: export it if that was not asked for yet, then land file after file."""
        window = self.heal.windows[number]
        where = f"window {number + 1} of {len(self.heal.windows)}"
        if window.export_arn is None:
            wait_until_restorable(self.lake, self.table, window.to_us, self.progress, self.sleep)
            arn = request_incremental(
                self.lake.source(self.table),
                self.described.arn,
                (moment(window.from_us), moment(window.to_us)),
                export_target(self.lake, self.table),
                self._token(window),
            )
            window = self._move(number, replace(window, export_arn=arn))
        status = self._wait_for(number, window, where)
        manifest = read_manifest(self.lake.aws, status, INCREMENTAL)
        if manifest.table_id and manifest.table_id != self.described.table_id:
            raise ExportError(f"export {status.arn} is of another table ({manifest.table_id})")
        for file in manifest.files:
            if file.key not in window.files:
                changes = export_changes(self.lake, status, file, self.described.table_id)
                objects = self._land(changes)
                self.lines += file.items
                landed = replace(window, files=(*window.files, file.key))
                window = self._move(number, landed, objects)
            self.progress(f"{where}: {len(window.files)} of {len(manifest.files)} files landed")
        self._move(number, replace(window, done=True))

    def _wait_for(self, number: int, window: HealWindow, where: str) -> ExportStatus:
        """Poll until the export is complete; one that failed is given up and asked for anew."""
        assert window.export_arn is not None
        while True:
            status = describe_export(self.lake.source(self.table), window.export_arn)
            if status.status == "COMPLETED":
                return status
            if status.status == "FAILED":
                again = replace(window, export_arn=None, attempt=window.attempt + 1)
                self._move(number, again)
                raise ExportError(
                    f"export {status.arn} failed: {status.failure}",
                    fix="heal again: it asks for a new export of the same window",
                )
            self.progress(f"{where}: export is {status.status}")
            self.sleep(self.lake.settings.export.poll_seconds)

    def _land(self, changes: Iterable[Change]) -> list[LandedObject]:
        """Write objects, some thousand changes at a time; they count when they are logged."""
        objects: list[LandedObject] = []
        erased = Suppressions(self.state.erasures.values())
        for read in batches(changes):
            batch = [c for c in read if not erased.drops(c.keys, c.write_time_us)]
            keys = partial(self.log.paths.healed, gap=self.gap.entry, nonce=new_nonce())
            generation, now_us = self.gap.heal_generation, self.log.now_us()
            objects += write_days(self.log.store, batch, keys, generation, now_us)
        return objects

    def _reread(self) -> None:
        """The ghost rule: items that exports do not speak of although our log touched them.

        An insert and a delete within a window leave no line. If we landed the insert and the
        delete was lost, the item would stay for ever.
        """
        settings = self.lake.settings.capture
        reader = ItemReader(
            self.lake.source(self.table),
            self.table.name,
            self.described.key_names,
            settings.reads_per_second,
        )
        until_us = self.heal.windows[-1].to_us - 1
        suspects = self._suspects()
        self.progress(f"reading {len(suspects)} items that the exports do not speak of")
        place = f"{position(0, until_us)}.{READ}"
        rows = (
            read_row(self.described.table_id, keys, item, until_us, place)
            for batch in batches(suspects)
            for keys, item in reader.read(batch).items()
        )
        objects = self._land(rows)
        self._record(replace(self.heal, reread=len(suspects)), objects)

    def _suspects(self) -> list[str]:
        """Keys touched in the windows before the gap, not deleted, and not seen since."""
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
        with tempfile.TemporaryDirectory() as folder, open_duckdb(self.lake, Path(folder)) as duck:
            touched = landed_relation(duck, self.lake, before)
            seen = landed_relation(duck, self.lake, later)
            rows = duck.execute(
                f"SELECT keys FROM {touched} AS touched "
                f"WHERE write_time_us >= {start} AND write_time_us < {end} "
                f"AND NOT EXISTS (SELECT 1 FROM {seen} AS seen WHERE seen.keys = touched.keys) "
                "GROUP BY keys HAVING arg_max(op, order_key) <> 'D' ORDER BY keys"
            ).fetchall()
        return [keys for (keys,) in rows]

    def _require_captured(self) -> None:
        """A healed state shows everything up to the end of the windows, so capture must, too.

        Items are read again only then: the stream says itself what became of those that changed
        behind the gap.
        """
        end_us = self.heal.windows[-1].to_us
        self.log.catch_up(self.state)
        if self.state.watermark_us - self.log.margin_us < end_us:
            raise NotReadyError(
                f"table {self.table.name}: what exports know of the gap has landed; capture is at "
                f"{moment(self.state.watermark_us)} and must come past {moment(end_us)}",
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
        """Log a step; of two heals at once the second one stops."""
        before, erasures = self._heals(heal), dict(self.state.erasures)
        entry = Entry(
            n=0,
            nonce=new_nonce(),
            owner=this_owner(),
            at_us=0,
            heal=heal,
            objects=tuple(objects or ()),
        )
        while not self.log.append(self.state, entry):
            self.log.catch_up(self.state)
            if self._heals(heal) != before:
                self.log.store.delete(landed.key for landed in entry.objects)
                raise CaptureConflictError(
                    f"table {self.table.name}: another run heals the gap of entry "
                    f"{self.gap.entry}; this one stops, nothing is lost and nothing doubled",
                    fix="let the other run finish",
                )
            if entry.objects and self.state.erasures != erasures:
                self.log.store.delete(landed.key for landed in entry.objects)
                raise CaptureConflictError(
                    f"table {self.table.name}: an item was erased while this heal landed",
                    fix="heal again: it goes on where this run stopped, without the item",
                )
        self.heal = heal

    def _heals(self, heal: Heal) -> list[Heal | None]:
        """What the log says of the gaps of a heal."""
        return [self.state.heal_of(gap) for gap in (*heal.also, heal.gap)]

    def _token(self, window: HealWindow) -> str:
        """The same attempt at the same window asks for the same export, whoever asks."""
        what = (self.described.table_id, self.gap.entry, window.from_us, window.attempt)
        return hashlib.sha256("/".join(map(str, what)).encode()).hexdigest()[:32]
