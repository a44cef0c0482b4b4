"""Erasure on request: removes every trace of an item from the lake and keeps it from returning.

1. Check that the source no longer has the item (consistent GetItem).
2. Log an entry that suppresses the key: a salted hash and the time. From the next entry on, no
   change written to the key up to that time lands, by capture, heal or new export.
3. Remove the item from one place after the other; log the progress after each.
4. Read every file again; log the end only if no file holds the item.

After a kill at any step, run it again with the same key. Not covered: the source's own backups
(35 days of point-in-time recovery, on-demand backups), copies made by others, parts of unfinished
S3 multipart uploads, names of attributes in schemas, and Dagster's run storage (it has numbers,
times and hashes from this package, and anything that users' own assets put there).
"""

import getpass
import os
import socket
import time
from dataclasses import dataclass, replace

from cdc_pipeline.aws.s3.objects import S3Store
from cdc_pipeline.aws.s3.output import sse_parameters
from cdc_pipeline.aws.table import describe_table, has_item
from cdc_pipeline.capture.sources.item_reader import native_key
from cdc_pipeline.core.errors import EraseRefusedError, LakeError, SettingsError
from cdc_pipeline.core.log.entries import Baseline, Erasure, RemovedRows
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.erasure import ItemTrace, key_hash, new_salt, typed_key
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.erase.exports import erase_from_exports
from cdc_pipeline.erase.lake import (
    erase_files,
    erase_iceberg,
    erase_landed,
    erase_quarantined,
    erase_scratch,
    erase_state_rows,
    erase_versions,
    rebuild_aggregates,
)
from cdc_pipeline.erase.places import (
    FileWithItem,
    SearchedPrefix,
    count_versions,
    find_item,
    key_columns,
    lake_prefixes,
)
from cdc_pipeline.lake.engine.masking import (
    masking_of,
    published_rules,
    require_rules,
    rules_by_day,
)
from cdc_pipeline.lake.iceberg.foreign_files import NamedFiles
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.log import CaptureLog, Parts
from cdc_pipeline.settings.table import Table
from cdc_pipeline.snapshot.export import describe_own_export, export_target
from cdc_pipeline.snapshot.resumption import discard_baseline, unfinished_baselines, why_unusable

_ROUNDS = 3
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class EraseResult:
    """Result of an erasure. `erasure`: its record in the log.

    `elsewhere`: tables that the catalogue keeps outside of the lake. None of their snapshots has
    the item; the catalogue's service decides when it deletes the files of earlier ones.
    """

    erasure: Erasure
    files_read: int
    seconds: float
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class EraseTarget:
    """An item to erase: its canonical key, its traces, and every place that can hold it.

    `table_id`: id of the present DynamoDB table.
    """

    table_id: str
    keys: str
    trace: ItemTrace
    places: list[SearchedPrefix]
    exports: SearchedPrefix | None


def erase_target(table: TableLake, key: str) -> EraseTarget:
    """Parse `key` (JSON of the key attributes, plain or typed), check that it can be erased.

    Raises `EraseRefusedError` for a key that does not fit the table, `OtherRulesError` if something
    was published under other masking rules, `SourceError`, `SettingsError`, `LakeError`.
    """
    described = describe_table(table.source, table.name)
    keys = typed_key(key, described.key_types)
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    for kind in key_columns(table).keys() - {"snapshot"}:
        built = table.iceberg(kind)
        if built is None:
            continue
        is_daily = kind in ("cdc", "ttl_archive")
        rules = rules_by_day(built).values() if is_daily else [published_rules(built)]
        asset = "current_state" if kind == "tombstones" else kind
        require_rules(masking, rules, f"{table.safe_name}_{kind}", f"{table.safe_name}/{asset}")
    exports = _exports(table)
    places = [*lake_prefixes(table), *([exports] if exports else [])]
    trace = ItemTrace(keys, masking.item(keys))
    return EraseTarget(described.table_id, keys, trace, places, exports)


def _exports(table: TableLake) -> SearchedPrefix | None:
    try:
        target = export_target(table)
    except SettingsError:
        return None  # a local lake without a bucket has no exports
    return SearchedPrefix(
        "exports",
        S3Store(table.lake.aws, target.bucket, target.prefix, sse_parameters(target.kms_key)),
        "",
    )


def find_traces(target: EraseTarget) -> tuple[list[FileWithItem], int]:
    """Return every file that holds the item, and the number of earlier versions S3 keeps."""
    return find_item(target.places, target.trace), count_versions(target.places)


def erase_item(
    table: TableLake,
    key: str,
    *,
    context: RunContext = SILENT,
) -> EraseResult:
    """Erase one item from the lake; safe to kill at any time and to run again.

    An item put later under the same key is a new one and is kept. Raises `EraseRefusedError` while
    the source has the item or an export of the table is in progress, `LakeError` if a trace remains
    at the end, and the errors of `erase_target`.
    """
    started = time.monotonic()
    target = erase_target(table, key)
    until_us = _absent_until_us(table, target.keys, context)
    run = _EraseRun(table, target, context)
    run.suppress(until_us)
    run.remove()
    for _ in range(_ROUNDS - 1):
        if not any(find_traces(target)):
            break
        run.remove()  # written by others during the first round
    _require_gone(table.settings, *find_traces(target), run.stale)
    run.finish()
    files_read = sum(1 for place in target.places for _ in place.store.files(place.prefix))
    elsewhere = tuple(p.name for p in target.places if isinstance(p.store, NamedFiles))
    return EraseResult(run.erasure, files_read, time.monotonic() - started, elsewhere)


def _require_gone(
    table: Table, holdings: list[FileWithItem], versions: int, stale: list[str]
) -> None:
    if stale:
        raise LakeError(
            f"table {table.name}: the item is erased except from aggregates that cannot be built "
            f"again: {', '.join(stale)}",
            fix="find the error with `cdc-pipeline query`, correct or remove their SQL, and erase "
            "again",
        )
    if not holdings and not versions:
        return
    listed = ", ".join(f"{holding.place}: {holding.key}" for holding in holdings[:10])
    raise LakeError(
        f"table {table.name}: {len(holdings)} files still hold the item ({listed}), and S3 has "
        f"{versions} earlier versions",
        fix="stop other writers to these places (another tool, replication), and erase again; the "
        "key stays suppressed",
    )


def _absent_until_us(table: TableLake, keys: str, context: RunContext) -> int:
    """Return the end of a second, in µs, in which and after which the source lacks the item.

    Stream times are rounded down to seconds, so only whole seconds can be separated from later
    changes. Waits for the next second.
    """
    native = native_key(keys)
    first_seconds: int | None = None
    while True:
        is_present, now_seconds = has_item(table.source, table.name, native)
        if is_present:
            raise EraseRefusedError(
                f"table {table.name} still has the item, and capture would land it again",
                fix=f"delete it there first: aws dynamodb delete-item --table-name {table.name} "
                "--key '<its key, typed>'",
            )
        first_seconds = now_seconds if first_seconds is None else first_seconds
        if now_seconds > first_seconds:
            return now_seconds * 1_000_000 - 1
        context.sleep(_POLL_SECONDS)


class _EraseRun:
    """One run of an erasure. `erasure`: its progress as logged; `stale`: failed aggregates."""

    def __init__(self, table: TableLake, target: EraseTarget, context: RunContext) -> None:
        self.table, self.target = table, target
        self.context = context
        self.log: CaptureLog = table.log
        self.state: LogState = self.log.load()
        self.stale: list[str] = []
        self.erasure: Erasure

    def suppress(self, until_us: int) -> None:
        """Log the suppression: no later entry lands the item."""

        def suppression(state: LogState) -> Parts:
            self._require_no_export()
            erasures = state.erasures
            salt = next((e.salt for e in erasures.values()), None) or new_salt()
            hashed = key_hash(salt, self.target.keys)
            earlier = erasures.get(hashed)
            self.erasure = Erasure(
                key_hash=hashed,
                salt=salt,
                until_us=max(until_us, earlier.until_us if earlier else 0),
                by=_user_and_host(),
                removed=earlier.removed if earlier else (),
            )
            return {"erasure": self.erasure}

        self.log.commit(self.state, suppression)
        hashed = self.erasure.key_hash
        self.context.progress(f"suppressed as {hashed[:16]} (log entry {self.state.n})")

    def _require_no_export(self) -> None:
        """Raise `EraseRefusedError` while an export is being landed or a gap healed from exports.

        The files of such an export must stay as its manifest lists them. Discarded instead: exports
        that cannot be finished, and exports for a comparison, which can take another one. A run
        about to stage a discarded one notices, or its commit fails.
        """
        name = self.table.safe_name
        for baseline in unfinished_baselines(self.state):
            useless = why_unusable(self.table, self.target.table_id, self.state, baseline)
            is_running = self._is_running(baseline) if useless is None else False
            if useless is not None or (baseline.shadow and not is_running):
                reason = useless or "an item that it may hold is erased"
                self.context.progress(discard_baseline(self.log, self.state, baseline, reason))
                continue
            raise EraseRefusedError(
                f"table {self.table.name}: an export is in progress, and it may hold the item",
                fix="erase again when AWS has finished it"
                if baseline.shadow
                else f"let it finish (materialise {name}/pitr_export), then erase again",
            )
        staged = self.state.staged
        gaps = self.state.open_gaps(staged.generation if staged else 0)
        if any(gap.entry in self.state.heals for gap in gaps):
            raise EraseRefusedError(
                f"table {self.table.name}: a gap is being healed from exports that may hold the "
                "item",
                fix=f"let it finish (cdc-pipeline heal {name}), then erase again",
            )

    def _is_running(self, baseline: Baseline) -> bool:
        """Whether AWS is still writing the baseline's export."""
        if baseline.export_arn is None:
            return False
        status = describe_own_export(self.table, baseline.export_arn, self.target.table_id)
        return status.status == "IN_PROGRESS"

    def remove(self) -> None:
        """Remove the item from every place, first where readers see it."""
        table, trace = self.table, self.target.trace
        erase_state_rows(table, trace)
        self._log_removed(erase_landed(self.log, trace))
        self._log_removed(erase_quarantined(self.log, trace))
        for kind in key_columns(table):
            self._log_removed(erase_iceberg(table, kind, trace))
        rebuilt, self.stale = rebuild_aggregates(table)
        self._log_removed(*rebuilt)
        if self.target.exports:
            self._log_removed(erase_from_exports(self.target.exports, trace))
        backups = next(place for place in self.target.places if place.name == "backups")
        self._log_removed(erase_files(backups, trace))
        self._log_removed(erase_scratch(table))
        self._log_removed(erase_versions(self.target.places))

    def _log_removed(self, *removed: RemovedRows) -> None:
        """Log the removed files and rows, added to those of earlier runs for this key."""
        new = [part for part in removed if part.files or part.rows]
        for part in new:
            self.context.progress(f"{part.place}: {part.files} files, {part.rows} rows")
        if new:
            self._log_erasure(replace(self.erasure, removed=_sums(self.erasure.removed, new)))

    def finish(self) -> None:
        """Log the end of the erasure; the last step."""
        self._log_erasure(replace(self.erasure, done_us=self.log.now_us()))

    def _log_erasure(self, erasure: Erasure) -> None:
        self.log.commit(self.state, lambda _: {"erasure": erasure})
        self.erasure = erasure


def _user_and_host() -> str:
    """Return user and host; a container's user may have no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _sums(earlier: tuple[RemovedRows, ...], new: list[RemovedRows]) -> tuple[RemovedRows, ...]:
    sums = {part.place: part for part in earlier}
    for part in new:
        total = sums.get(part.place, RemovedRows(part.place, 0, 0))
        sums[part.place] = RemovedRows(part.place, total.files + part.files, total.rows + part.rows)
    return tuple(sums.values())
