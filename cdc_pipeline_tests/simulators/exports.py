"""Point-in-time recovery and exports on the streams simulator: one clock for a table, its stream,
its backups and the bucket that they are exported to.

What an export holds, when AWS refuses one, and the files it consists of are the sandbox's
(`cdc_pipeline.sandbox`: `journal`, `recovery`, `export_requests`, `export_files`).
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from cdc_pipeline.sandbox.aws.dynamodb.journal import Change, Clock, TableJournal
from cdc_pipeline.sandbox.aws.dynamodb.recovery import Recovery
from cdc_pipeline.sandbox.aws.dynamodb.responses import RefusedError
from cdc_pipeline.sandbox.aws.exports.files import (
    TableState,
    WindowChanges,
    manifest_files,
    manifest_summary,
    md5,
)
from cdc_pipeline.sandbox.aws.exports.requests import (
    FULL,
    INCREMENTAL,
    check_parameters,
    export_window,
    full_export_micros,
    iso,
)
from cdc_pipeline_tests.simulators.faults import Reply
from cdc_pipeline_tests.simulators.items import Item, identity, size_of
from cdc_pipeline_tests.simulators.streams_model import StreamsModel, Table
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator
from cdc_pipeline_tests.simulators.streams_service import ServiceError, StreamsService

LEAST_WINDOW_SECONDS = 15 * 60
RESTORABLE_LAG_SECONDS = 5 * 60
_DYNAMODB = "com.amazonaws.dynamodb.v20120810#"
_TOKEN_MICROS = 8 * 3600 * 1_000_000


class _Micros(Clock):
    """The simulated clock in whole µs; no two ticks are one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def _present(self) -> int:
        return round(self._clock() * 1_000_000)


@dataclass
class Version:
    """What a write made of an item: `image` from `micros` on, None: deleted."""

    micros: int
    table_id: str
    key: Item
    image: Item | None


class BackedUpModel(StreamsModel):
    """Tables with streams, and a journal of each whose recovery is on.

    `versions`: every version of every item ever, whoever heard of it.
    """

    def __init__(
        self, clock: Callable[[], float], seed: int = 0, *, exact_bounds: bool = True
    ) -> None:
        super().__init__(clock, seed, exact_bounds=exact_bounds)
        self.micros = _Micros(clock)
        self.journals: dict[str, TableJournal] = {}
        self.versions: dict[str, list[Version]] = {}

    def create_table(
        self, name: str, key: Sequence[str], view_type: str | None, shards: int, backups: bool
    ) -> Table:
        table = super().create_table(name, key, view_type, shards, backups)
        self.switch_backups(table, on=backups)
        return table

    def delete_table(self, name: str) -> None:
        table, micros = self.tables[name], self.micros.tick()
        self.journals.pop(table.table_id, None)
        for item in table.items():
            key = {k: item[k] for k in table.key_names}
            self.versions[name].append(Version(micros, table.table_id, key, None))
        super().delete_table(name)

    def switch_backups(self, table: Table, *, on: bool) -> None:
        """Turning recovery off loses its history, in AWS too."""
        table.backups = on
        if not on:
            self.journals.pop(table.table_id, None)
        elif table.table_id not in self.journals:
            self.journals[table.table_id] = TableJournal(self.micros.tick())

    def changed(
        self, table: Table, key: Item, old: Item | None, new: Item | None, by_ttl: bool
    ) -> None:
        micros = self.micros.tick()
        self.versions.setdefault(table.name, []).append(Version(micros, table.table_id, key, new))
        journal = self.journals.get(table.table_id)
        if journal is not None:
            journal.changes.append(Change(micros, (identity(key), None), old, new))


Spoiling = Literal["fail", "flip", "cut", "gone", "filter"]
"""What becomes of an export: it fails; or a byte of a data file is another one, its manifest ends
early, all its files are gone as soon as it is over."""


@dataclass
class Export:
    """One accepted export, which is over at `due`."""

    description: dict[str, Any]
    request: dict[str, Any]
    times: dict[str, str]
    content: TableState | WindowChanges
    due: int
    spoiling: Spoiling | None = None


class ExportsService(StreamsService):
    """The operations of recovery and exports, and the bucket: `objects` by key.

    `delay_seconds`: how long an export takes. `spoil_next`: what becomes of those asked for next.
    """

    def __init__(
        self, model: BackedUpModel, *, strict_trim: bool, delay_seconds: float = 120
    ) -> None:
        super().__init__(model, strict_trim=strict_trim)
        self.objects: dict[str, bytes] = {}
        self.exports: dict[str, Export] = {}
        self.spoil_next: list[Spoiling] = []
        self._backed_up = model
        self._delay_us = int(delay_seconds * 1_000_000)
        self._recovery = Recovery(
            None, cast(Any, model), model.micros, lag_seconds=RESTORABLE_LAG_SECONDS
        )
        self._operations |= {
            "DescribeContinuousBackups": (self._describe_backups, ("TableName",)),
            "ExportTableToPointInTime": (
                self._start,
                (
                    "TableArn",
                    "S3Bucket",
                    "S3Prefix",
                    "ExportFormat",
                    "ExportTime",
                    "ExportType",
                    "IncrementalExportSpecification",
                    "ClientToken",
                ),
            ),
            "DescribeExport": (self._describe_export, ("ExportArn",)),
        }

    def answer(self, operation: str, request: dict[str, Any]) -> Any:
        """As the base's; what the sandbox's rules refuse is an error of the service."""
        try:
            return super().answer(operation, request)
        except RefusedError as refused:
            raise ServiceError(_DYNAMODB + refused.code, str(refused)) from None

    def _described(self, table: Table) -> dict[str, Any]:
        """A table as the sandbox's rules know it."""
        return {
            "TableId": table.table_id,
            "TableName": table.name,
            "TableArn": table.arn,
            "CreationDateTime": table.created_at,
        }

    def _describe_backups(self, request: dict[str, Any]) -> Any:
        table = self._table(request["TableName"])
        recovery: dict[str, Any] = {"PointInTimeRecoveryStatus": "DISABLED"}
        if table.backups:
            described = self._described(table)
            earliest = -(-self._recovery.earliest(described) // 1000)
            latest = max(earliest, self._recovery.latest(described) // 1000)
            recovery = {
                "PointInTimeRecoveryStatus": "ENABLED",
                "RecoveryPeriodInDays": 35,
                "EarliestRestorableDateTime": earliest / 1000,
                "LatestRestorableDateTime": latest / 1000,
            }
        return {
            "ContinuousBackupsDescription": {
                "ContinuousBackupsStatus": "ENABLED",
                "PointInTimeRecoveryDescription": recovery,
            }
        }

    def _start(self, request: dict[str, Any]) -> Any:
        check_parameters(request)
        name = request["TableArn"].rpartition("/")[2]
        table = self._model.tables.get(name)
        if table is None:
            raise RefusedError("TableNotFoundException", f"Table not found: {name}")
        token = request.get("ClientToken")
        asked = {key: value for key, value in request.items() if key != "ClientToken"}
        known = self._by_token(token)
        if known is None:
            known = self._accept(table, asked, token)
        elif known.request != asked:
            raise RefusedError("ExportConflictException", "Duplicate request detected")
        return {"ExportDescription": known.description}

    def _by_token(self, token: str | None) -> Export | None:
        """A token is good for eight hours after its export is over."""
        now = self._backed_up.micros.now()
        return next(
            (
                export
                for export in self.exports.values()
                if token == export.description["ClientToken"] and now < export.due + _TOKEN_MICROS
            ),
            None,
        )

    def _accept(self, table: Table, asked: dict[str, Any], token: str | None) -> Export:
        described, micros = self._described(table), self._backed_up.micros
        now = micros.now()
        incremental = asked.get("ExportType") == INCREMENTAL
        more: dict[str, Any]
        if incremental:
            specification = asked["IncrementalExportSpecification"]
            window = export_window(
                self._recovery, described, specification, now, least_seconds=LEAST_WINDOW_SECONDS
            )
            changes = self._recovery.journal(described).between(window.start, window.end)
            content = WindowChanges(changes, window, list(table.key_names), "typed")
            more = {"IncrementalExportSpecification": window.described()}
            times = {"exportFromTime": iso(window.start), "exportToTime": iso(window.end)}
        else:
            at = full_export_micros(self._recovery, described, asked.get("ExportTime"), now)
            items: dict[Hashable, Item] = {
                (place, None): stored.item for place, stored in table.stored.items()
            }
            content = TableState(items, self._recovery.journal(described).since(at))
            more = {"ExportTime": at / 1_000_000}
            times = {"exportTime": iso(at)}
        start = micros.tick()
        suffix = f"{self._backed_up.random.getrandbits(32):08x}"
        description = {
            "ExportArn": f"{table.arn}/export/{start // 1000:014d}-{suffix}",
            "ExportStatus": "IN_PROGRESS",
            "StartTime": start / 1_000_000,
            "TableArn": table.arn,
            "TableId": table.table_id,
            "S3Bucket": asked["S3Bucket"],
            "S3Prefix": asked.get("S3Prefix"),
            "S3SseAlgorithm": "AES256",
            "ExportFormat": "DYNAMODB_JSON",
            "ExportType": INCREMENTAL if incremental else FULL,
            "ClientToken": token,
            **more,
        }
        spoiling = self.spoil_next.pop(0) if self.spoil_next else None
        if spoiling == "filter":
            description["FilterSpecification"] = {"FilterExpression": "attribute_exists(pk)"}
        due = start + self._delay_us
        export = Export(description, asked, times, content, due, spoiling)
        self.exports[description["ExportArn"]] = export
        return export

    def _describe_export(self, request: dict[str, Any]) -> Any:
        export = self.exports.get(request["ExportArn"])
        if export is None:
            raise RefusedError(
                "ExportNotFoundException", f"Export not found: {request['ExportArn']}"
            )
        description = export.description
        running = description["ExportStatus"] == "IN_PROGRESS"
        if running and self._backed_up.micros.now() >= export.due:
            self._end(export)
        return {"ExportDescription": description}

    def _end(self, export: Export) -> None:
        description = export.description
        description["EndTime"] = export.due / 1_000_000
        if export.spoiling == "fail":
            description |= {
                "ExportStatus": "FAILED",
                "FailureCode": "S3AccessDenied",
                "FailureMessage": "Access Denied",
            }
            return
        export_id = description["ExportArn"].rpartition("/")[2]
        root = f"{description['S3Prefix']}/AWSDynamoDB"
        incremental = description["ExportType"] == INCREMENTAL
        data = f"{root}/data" if incremental else f"{root}/{export_id}/data"
        files = list(export.content.data_files(size_of, threading.Event()))
        if export.spoiling == "filter":
            files = [file for file in files if not file.item_count]
        entries = [(file, f"{file.name}-1", f"{data}/{file.name}") for file in files]
        for file, _, key in entries:
            self.objects[key] = file.body
        folder = f"{root}/{export_id}"
        counts = {
            "billedSizeBytes": export.content.billed_bytes(sum(f.item_bytes for f in files)),
            "itemCount": sum(file.item_count for file in files),
        }
        began = iso(round(description["StartTime"] * 1_000_000))
        times = {"startTime": began, "endTime": iso(export.due)}
        lines = manifest_files(entries)
        summary = manifest_summary(
            description, f"{folder}/manifest-files.json", counts, times | export.times
        )
        self.objects |= {
            f"{folder}/manifest-files.json": lines,
            f"{folder}/manifest-files.md5": md5(lines).encode(),
            f"{folder}/manifest-summary.md5": md5(summary).encode(),
            f"{folder}/manifest-summary.json": summary,
        }
        description |= {
            "ExportStatus": "COMPLETED",
            "ExportManifest": f"{folder}/manifest-summary.json",
            "ItemCount": counts["itemCount"],
        }
        self._spoil(export, folder, [key for file, _, key in entries if file.item_count])

    def _spoil(self, export: Export, folder: str, data_keys: list[str]) -> None:
        manifest = f"{folder}/manifest-files.json"
        match export.spoiling:
            case "flip":
                for key in data_keys[:1]:
                    body = self.objects[key]
                    middle = len(body) // 2
                    flipped = bytes([body[middle] ^ 1])
                    self.objects[key] = body[:middle] + flipped + body[middle + 1 :]
            case "cut":
                self.objects[manifest] = self.objects[manifest][:-20]
            case "gone":
                for key in [*data_keys, *(k for k in self.objects if k.startswith(folder))]:
                    self.objects.pop(key, None)

    def get_object(self, key: str) -> Reply:
        """S3's GetObject."""
        found = self.objects.get(key)
        if found is not None:
            return Reply(200, found, etag=f'"{md5(found)}"')
        return Reply(404, b"<Error><Code>NoSuchKey</Code><Message>No such key</Message></Error>")


class ExportsSimulator(StreamsSimulator):
    """DynamoDB, its streams, recovery and exports, and S3's GetObject of what they wrote.

    Any bucket is the one bucket, and its answers are whole.
    """

    def __init__(self, *, clock: Callable[[], float] | None = None, seed: int = 0) -> None:
        super().__init__(clock=clock, seed=seed)
        self._begin_account(seed)

    def _begin_account(
        self, seed: int, *, exact_bounds: bool = True, strict_trim: bool = True
    ) -> None:
        self._backed_up = BackedUpModel(self.clock, seed, exact_bounds=exact_bounds)
        self._model = self._backed_up
        self._service = self._exporting = ExportsService(self._backed_up, strict_trim=strict_trim)

    def get(self, path: str) -> Reply:
        with self._lock:
            return self._exporting.get_object(path.lstrip("/").partition("/")[2])

    # ------------------------------------------------------------------- recovery and exports

    def switch_backups(self, name: str, *, on: bool) -> None:
        with self._lock:
            self._backed_up.switch_backups(self._backed_up.tables[name], on=on)

    def spoil_exports(self, *how: Spoiling) -> None:
        """What becomes of the exports that are asked for next, one after the other."""
        with self._lock:
            self._exporting.spoil_next = list(how)

    @property
    def objects(self) -> dict[str, bytes]:
        """What exports wrote, by key; tests may damage or remove it."""
        return self._exporting.objects

    def versions(self, name: str) -> list[Version]:
        """Every version of every item that was ever written under a table's name, in order."""
        with self._lock:
            return list(self._backed_up.versions.get(name, ()))
