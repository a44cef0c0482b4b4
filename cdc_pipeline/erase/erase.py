"""Erase on request: an item leaves the lake with every trace, and cannot come back.

1. The source must no longer have the item (consistent GetItem).
2. A log entry suppresses its key: a salted hash and the time. From the next entry on nothing lands
   that was written to that key until then, whatever brings it: capture, a heal, a new export.
3. It is removed from place after place; after each the log says how far that has come.
4. Every file is read again; only if none holds the item the log says that it is done.

Killed at any step it is run again with the same key. Beyond its reach: the source's own backups
(35 days of point-in-time recovery, on-demand backups), copies that others made, parts of S3
multipart uploads that were never finished, names of attributes in schemas, and what Dagster's run
storage holds (numbers, times and hashes by our doing, and whatever users' own assets put there).
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
from cdc_pipeline.core.log.entries import Baseline, Erasure, Removed
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.plans.erasure import ItemTrace, key_hash, new_salt, typed_key
from cdc_pipeline.core.run_context import SILENT, RunContext
from cdc_pipeline.erase.exports import erase_exported
from cdc_pipeline.erase.lake import (
    Holding,
    Place,
    count_versions,
    erase_files,
    erase_iceberg,
    erase_landed,
    erase_quarantined,
    erase_scratch,
    erase_state_rows,
    erase_versions,
    find_item,
    key_columns,
    lake_places,
    rebuild_aggregates,
)
from cdc_pipeline.lake.engine.masking import (
    days_under_rules,
    masking_of,
    published_rules,
    require_rules,
)
from cdc_pipeline.lake.iceberg.foreign_files import NamedFiles
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.log import CaptureLog, Parts
from cdc_pipeline.settings.model import Table
from cdc_pipeline.snapshot.export import export_target, exported
from cdc_pipeline.snapshot.unfinished import discarded, unfinished, why_useless

_ROUNDS = 3
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class EraseResult:
    """What an erasure did. `erasure`: its record in the log.

    `elsewhere`: tables that the catalogue keeps outside of the lake. No snapshot of theirs has the
    item any more; when the files of earlier ones go is up to its service.
    """

    erasure: Erasure
    files_read: int
    seconds: float
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class EraseTarget:
    """An item to erase: its canonical key, how to recognise it, and everywhere it can lie.

    `table_id`: of the table as it is now.
    """

    table_id: str
    keys: str
    trace: ItemTrace
    places: list[Place]
    exports: Place | None


def erase_target(table: TableLake, key: str) -> EraseTarget:
    """What `key` (JSON of the key attributes, plain or typed) means, and that it can be erased.

    Raises `EraseRefusedError` for another key than the table's, `OtherRulesError` where something
    was published under other masking rules, `SourceError`, `SettingsError`, `LakeError`.
    """
    described = describe_table(table.source, table.name)
    keys = typed_key(key, described.key_types)
    masking = masking_of(table.lake.settings, table.settings, writing=True)
    for kind in key_columns(table).keys() - {"snapshot"}:
        found = table.lake.iceberg.load(f"{table.safe_name}_{kind}")
        if found is None:
            continue
        daily = kind in ("cdc", "ttl_archive")
        rules = days_under_rules(found).values() if daily else [published_rules(found)]
        asset = "current_state" if kind == "tombstones" else kind
        require_rules(masking, rules, f"{table.safe_name}_{kind}", f"{table.safe_name}/{asset}")
    exports = _exports(table)
    places = [*lake_places(table), *([exports] if exports else [])]
    trace = ItemTrace(keys, masking.item(keys))
    return EraseTarget(described.table_id, keys, trace, places, exports)


def _exports(table: TableLake) -> Place | None:
    try:
        target = export_target(table)
    except SettingsError:
        return None  # a local lake without a bucket: there were no exports
    return Place(
        "exports",
        S3Store(table.lake.aws, target.bucket, target.prefix, sse_parameters(target.kms_key)),
        "",
    )


def find_traces(target: EraseTarget) -> tuple[list[Holding], int]:
    """Every file that holds the item, and how many earlier versions S3 keeps beside them."""
    return find_item(target.places, target.trace), count_versions(target.places)


def erase_item(
    table: TableLake,
    key: str,
    *,
    context: RunContext = SILENT,
) -> EraseResult:
    """Erase one item from the lake; safe to kill at any moment and to run again.

    An item that is put later under the same key is a new one, and is kept. Raises
    `EraseRefusedError` while the source has the item or an export of the table is under way,
    `LakeError` when something of it is still there at the end, and what `erase_target` raises.
    """
    started = time.monotonic()
    target = erase_target(table, key)
    until_us = _absent_until_us(table, target.keys, context)
    erasing = _Erasing(table, target, context)
    erasing.suppress(until_us)
    erasing.remove()
    for _ in range(_ROUNDS - 1):
        if not any(find_traces(target)):
            break
        erasing.remove()  # what was under way while the first round removed it
    _require_gone(table.settings, *find_traces(target), erasing.stale)
    erasing.finish()
    read = sum(1 for place in target.places for _ in place.store.files(place.prefix))
    elsewhere = tuple(p.name for p in target.places if isinstance(p.store, NamedFiles))
    return EraseResult(erasing.erasure, read, time.monotonic() - started, elsewhere)


def _require_gone(table: Table, left: list[Holding], versions: int, stale: list[str]) -> None:
    if stale:
        raise LakeError(
            f"table {table.name}: the item is gone but from aggregates that cannot be built anew: "
            f"{', '.join(stale)}",
            fix="see what fails with `cdc-pipeline query`, mend or remove their SQL, and erase "
            "again",
        )
    if not left and not versions:
        return
    listed = ", ".join(f"{holding.place}: {holding.key}" for holding in left[:10])
    raise LakeError(
        f"table {table.name}: {len(left)} files still hold the item ({listed}), and {versions} "
        "earlier versions are there",
        fix="see that nothing else writes there (another tool, replication), and erase again; the "
        "key stays suppressed",
    )


def _absent_until_us(table: TableLake, keys: str, context: RunContext) -> int:
    """The end of a second, in µs, in which the source did not have the item, nor behind it.

    Stream times are rounded down to seconds, so only whole seconds can be told from what follows.
    """
    native = native_key(keys)
    first_s: int | None = None
    while True:
        there, now_s = has_item(table.source, table.name, native)
        if there:
            raise EraseRefusedError(
                f"table {table.name} still has the item, and it would come again",
                fix=f"delete it there first: aws dynamodb delete-item --table-name {table.name} "
                "--key '<its key, typed>'",
            )
        first_s = now_s if first_s is None else first_s
        if now_s > first_s:
            return now_s * 1_000_000 - 1
        context.sleep(_POLL_SECONDS)


class _Erasing:
    """One run of one erasure; `erasure` is how far it is, as the log says."""

    def __init__(self, table: TableLake, target: EraseTarget, context: RunContext) -> None:
        self.table, self.target = table, target
        self.context = context
        self.log: CaptureLog = table.log
        self.state: LogState = self.log.load()
        self.stale: list[str] = []
        self.erasure: Erasure

    def suppress(self, until_us: int) -> None:
        """Log the suppression: no later entry brings the item."""

        def suppression(state: LogState) -> Parts:
            self._require_rest()
            known = state.erasures
            salt = next((e.salt for e in known.values()), None) or new_salt()
            hashed = key_hash(salt, self.target.keys)
            earlier = known.get(hashed)
            self.erasure = Erasure(
                key_hash=hashed,
                salt=salt,
                until_us=max(until_us, earlier.until_us if earlier else 0),
                by=_who(),
                removed=earlier.removed if earlier else (),
            )
            return {"erasure": self.erasure}

        self.log.commit(self.state, suppression)
        hashed = self.erasure.key_hash
        self.context.progress(f"suppressed as {hashed[:16]} (log entry {self.state.n})")

    def _require_rest(self) -> None:
        """Files of an export that is being landed must stay as its manifest says.

        One that nobody can finish is given up, and so is one for a comparison: that takes another.
        A run that is about to stage it sees that, or cannot commit it.
        """
        name = self.table.safe_name
        for baseline in unfinished(self.state):
            useless = why_useless(self.table, self.target.table_id, self.log, self.state, baseline)
            written = self._is_written(baseline) if useless is None else False
            if useless is not None or (baseline.shadow and not written):
                why = useless or "an item that it may hold is erased"
                self.context.progress(discarded(self.log, self.state, baseline, why))
                continue
            raise EraseRefusedError(
                f"table {self.table.name}: an export is under way, and it may hold the item",
                fix="erase again when AWS has written it"
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

    def _is_written(self, baseline: Baseline) -> bool:
        """Whether AWS is still writing its export."""
        if baseline.export_arn is None:
            return False
        status = exported(self.table, baseline.export_arn, self.target.table_id)
        return status.status == "IN_PROGRESS"

    def remove(self) -> None:
        """Remove the item from every place, readers' first."""
        lake, table, trace = self.table.lake, self.table.settings, self.target.trace
        erase_state_rows(lake.table(table), trace)
        self._note(erase_landed(self.log, trace))
        self._note(erase_quarantined(self.log, trace))
        for kind in key_columns(lake.table(table)):
            self._note(erase_iceberg(lake.table(table), kind, trace))
        rebuilt, self.stale = rebuild_aggregates(lake.table(table))
        self._note(*rebuilt)
        if self.target.exports:
            self._note(erase_exported(self.target.exports, trace))
        backups = next(place for place in self.target.places if place.name == "backups")
        self._note(erase_files(backups, trace))
        self._note(erase_scratch(lake.table(table)))
        self._note(erase_versions(self.target.places))

    def _note(self, *removed: Removed) -> None:
        """Log what was removed, added to what earlier runs for this key removed."""
        news = [part for part in removed if part.files or part.rows]
        for part in news:
            self.context.progress(f"{part.place}: {part.files} files, {part.rows} rows")
        if news:
            self._record(replace(self.erasure, removed=_added(self.erasure.removed, news)))

    def finish(self) -> None:
        """Log that nothing is left; the last thing that is done."""
        self._record(replace(self.erasure, done_us=self.log.now_us()))

    def _record(self, erasure: Erasure) -> None:
        self.log.commit(self.state, lambda _: {"erasure": erasure})
        self.erasure = erasure


def _who() -> str:
    """User and host; a container's user may have no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _added(before: tuple[Removed, ...], news: list[Removed]) -> tuple[Removed, ...]:
    sums = {part.place: part for part in before}
    for part in news:
        known = sums.get(part.place, Removed(part.place, 0, 0))
        sums[part.place] = Removed(part.place, known.files + part.files, known.rows + part.rows)
    return tuple(sums.values())
