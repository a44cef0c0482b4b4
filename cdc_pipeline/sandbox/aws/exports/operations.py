"""Exports to S3, which the emulator lacks: requests, states, descriptions and lists.

Behaviour not documented by AWS is decided here and in the modules it uses; see docs/sandbox.md.
"""

import asyncio
import base64
import contextlib
import secrets
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from cdc_pipeline.sandbox.aws.dynamodb.journal import Clock, Item
from cdc_pipeline.sandbox.aws.dynamodb.recovery import Recovery
from cdc_pipeline.sandbox.aws.dynamodb.responses import RefusedError, answering
from cdc_pipeline.sandbox.aws.dynamodb.streams import Writes
from cdc_pipeline.sandbox.aws.exports.files import (
    WRITE_TIMES,
    DataFile,
    FailedError,
    TableState,
    WindowChanges,
    manifest_files,
    manifest_summary,
    md5,
)
from cdc_pipeline.sandbox.aws.exports.principals import ForeignBuckets, principal
from cdc_pipeline.sandbox.aws.exports.requests import (
    FULL,
    INCREMENTAL,
    check_parameters,
    export_window,
    full_export_micros,
    iso,
)
from cdc_pipeline.sandbox.export_options import ExportOptions

# ClientToken: "valid for 8 hours after the first request that uses it is completed".
_TOKEN_MICROS = 8 * 3600 * 1_000_000
_PAGE_LIMIT = 25
_DESCRIBED = (
    "ClientToken",
    "S3Bucket",
    "S3BucketOwner",
    "S3Prefix",
    "S3SseAlgorithm",
    "S3SseKmsKeyId",
)

Content = TableState | WindowChanges


@dataclass(slots=True)
class Faults:
    """Faults set by tests: failing exports, other formats; see `control.control`."""

    fail_exports: int = 0
    failure_code: str = "S3AccessDenied"
    failure_message: str = "Access Denied (Service: Amazon S3; Status Code: 403)"
    write_time: str = "typed"

    def set_write_time(self, spelling: str) -> None:
        """Set the format of WriteTimestampMicros; raises ValueError unless in WRITE_TIMES."""
        if spelling not in WRITE_TIMES:
            raise ValueError(f"write_time is one of {', '.join(WRITE_TIMES)}")
        self.write_time = spelling

    def next_failure(self) -> FailedError | None:
        """Return the failure for the next export, None if it is not to fail."""
        if self.fail_exports <= 0:
            return None
        self.fail_exports -= 1
        return FailedError(self.failure_code, self.failure_message)


@dataclass(slots=True)
class Export:
    """One accepted export: its ExportDescription and its input.

    `times`: exportTime, or exportFromTime and exportToTime, as in its manifest. `caller`: ARN of
    the requester, whose permissions it uses for writing.
    """

    description: dict[str, Any]
    request: dict[str, Any]
    times: dict[str, str]
    caller: str
    failure: FailedError | None = None
    end_micros: int | None = None

    @property
    def arn(self) -> str:
        """ARN, ending in the ExportId."""
        return self.description["ExportArn"]

    @property
    def folder(self) -> str:
        """`<S3Prefix>/AWSDynamoDB/<ExportId>`; without S3Prefix if none is given."""
        return f"{self._root}/{self.arn.rsplit('/', 1)[1]}"

    @property
    def data_folder(self) -> str:
        """Folder of the data files; all incremental exports of a prefix share one."""
        shared = self.description["ExportType"] == INCREMENTAL
        return f"{self._root if shared else self.folder}/data"

    @property
    def _root(self) -> str:
        prefix = self.description.get("S3Prefix")
        return f"{prefix}/AWSDynamoDB" if prefix else "AWSDynamoDB"


class Exports:
    """Answers the export operations in place of the emulator.

    `put_object(bucket, key, body, headers)` writes to the sandbox's S3 and returns the ETag; it is
    awaited on the event loop that serves requests. `buckets`: owners of buckets. `faults` may be
    changed at any time.
    """

    def __init__(
        self,
        dynamodb: Any,
        writes: Writes,
        clock: Clock,
        put_object: Callable[..., Any],
        buckets: ForeignBuckets,
        options: ExportOptions,
    ) -> None:
        self.faults = Faults()
        self._buckets = buckets
        self._dynamodb = dynamodb
        self._writes = writes
        self._clock = clock
        self._put_object = put_object
        self._options = options
        self._recovery = Recovery(
            dynamodb, writes, clock, lag_seconds=options.restorable_lag_seconds
        )
        self._exports: dict[str, Export] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = threading.Event()

    def install(self) -> None:
        """Replace the emulator's handlers; once per process."""
        module = self._dynamodb
        self._recovery.install()
        self._reset = module.reset
        module._export_table_to_point_in_time = answering(self._start)
        module._describe_export = answering(self._describe)
        module._list_exports = answering(self._list)
        module.reset = self._forget_all

    def stop(self) -> None:
        """Abandon running exports, for a quick shutdown."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()

    def _forget_all(self) -> None:
        self._reset()
        self._writes.clear()
        self._recovery.clear()
        self._exports.clear()

    # Requests

    def _start(self, data: dict[str, Any]) -> dict[str, Any]:
        check_parameters(data)
        table = self._table(data["TableArn"])
        request = {key: value for key, value in data.items() if key != "ClientToken"}
        known = self._by_token(data.get("ClientToken"))
        if known is None:
            incremental = data.get("ExportType") == INCREMENTAL
            accept = self._accept_incremental if incremental else self._accept_full
            known, content = accept(table, data, request)
            self._launch(known, content)
        elif known.request != request:
            raise RefusedError(
                "ExportConflictException",
                "Export conflict: Duplicate request detected with conflicting parameters",
            )
        return {"ExportDescription": dict(known.description)}

    def _table(self, arn: str) -> dict[str, Any]:
        table = self._present_table(arn)
        if table is None:
            raise RefusedError("TableNotFoundException", f"Table not found: {arn}")
        return table

    def _present_table(self, arn: str) -> dict[str, Any] | None:
        name = self._dynamodb._table_name_from_arn(arn)
        table = self._dynamodb._tables.get(name) if name else None
        return table if table is not None and table["TableArn"] == arn else None

    def _by_token(self, token: str | None) -> Export | None:
        horizon = self._clock.now() - _TOKEN_MICROS
        for export in self._exports.values():
            fresh = export.end_micros is None or export.end_micros > horizon
            if token and fresh and export.description.get("ClientToken") == token:
                return export
        return None

    def _accept_full(
        self, table: dict[str, Any], data: dict[str, Any], request: dict[str, Any]
    ) -> tuple[Export, Content]:
        micros = full_export_micros(
            self._recovery, table, data.get("ExportTime"), self._clock.now()
        )
        # No request runs at the same time, and stored items are never changed in place: a copy of
        # the references is a consistent snapshot.
        items: dict[Hashable, Item] = {
            (pk, sk): item
            for pk, partition in table["items"].items()
            for sk, item in partition.items()
        }
        content = TableState(items, self._recovery.journal(table).since(micros))
        description = self._description(table, data, self._clock.tick() // 1000)
        description |= {"ExportTime": micros // 1000 / 1000, "ExportType": FULL}
        return self._accept(description, request, {"exportTime": iso(micros)}), content

    def _accept_incremental(
        self, table: dict[str, Any], data: dict[str, Any], request: dict[str, Any]
    ) -> tuple[Export, Content]:
        window = export_window(
            self._recovery,
            table,
            data["IncrementalExportSpecification"],
            self._clock.now(),
            least_seconds=self._options.least_window_seconds,
        )
        content = WindowChanges(
            self._recovery.journal(table).between(window.start, window.end),
            window,
            [key["AttributeName"] for key in table["KeySchema"]],
            self.faults.write_time,
        )
        # Real exports, and their ExportIds, start at a whole second.
        description = self._description(table, data, self._clock.tick() // 1_000_000 * 1000)
        description |= {
            "ExportType": INCREMENTAL,
            "IncrementalExportSpecification": window.described(),
        }
        times = {"exportFromTime": iso(window.start), "exportToTime": iso(window.end)}
        return self._accept(description, request, times), content

    def _description(
        self, table: dict[str, Any], data: dict[str, Any], start_millis: int
    ) -> dict[str, Any]:
        export_id = f"{start_millis:014d}-{secrets.token_hex(4)}"
        return {
            "ExportArn": f"{table['TableArn']}/export/{export_id}",
            "ExportStatus": "IN_PROGRESS",
            "StartTime": start_millis / 1000,
            "TableArn": table["TableArn"],
            "TableId": table["TableId"],
            "S3SseAlgorithm": "AES256",
            **{name: data[name] for name in _DESCRIBED if data.get(name) is not None},
            "ExportFormat": "DYNAMODB_JSON",
        }

    def _accept(
        self, description: dict[str, Any], request: dict[str, Any], times: dict[str, str]
    ) -> Export:
        failure = self.faults.next_failure()
        export = Export(description, request, times, principal(), failure)
        self._exports[export.arn] = export
        return export

    # Work

    def _launch(self, export: Export, content: Content) -> None:
        task = asyncio.get_running_loop().create_task(self._run(export, content))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, export: Export, content: Content) -> None:
        due = asyncio.get_running_loop().time() + self._options.delay_seconds
        description = export.description
        try:
            self._check_bucket(export)
            await self._put(export, f"{export.folder}/_started", b"")
            size_of = self._dynamodb._item_size_bytes
            files = await asyncio.to_thread(
                lambda: list(content.data_files(size_of, self._stopping))
            )
            entries = [await self._put_data(export, file) for file in files]
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if export.failure is not None:
                raise export.failure
            counts = {
                "billedSizeBytes": content.billed_bytes(sum(file.item_bytes for file in files)),
                "itemCount": sum(file.item_count for file in files),
            }
            export.end_micros = self._clock.now()
            await self._put_manifests(export, entries, counts)
        except FailedError as failure:
            export.end_micros = self._clock.now()
            description["FailureCode"] = failure.code
            description["FailureMessage"] = str(failure)
            description["ExportStatus"] = "FAILED"
        else:
            description["ExportManifest"] = f"{export.folder}/manifest-summary.json"
            description["BilledSizeBytes"] = counts["billedSizeBytes"]
            description["ItemCount"] = counts["itemCount"]
            description["ExportStatus"] = "COMPLETED"
        description["EndTime"] = export.end_micros // 1000 / 1000

    def _check_bucket(self, export: Export) -> None:
        """Fail an export if the bucket's owner is not the given one or denies the caller."""
        description = export.description
        bucket, named = description["S3Bucket"], description.get("S3BucketOwner")
        owner = self._buckets.owner(bucket)
        own = description["TableArn"].split(":")[4]
        if owner is None:
            return  # the write reports it
        if (named or own) != owner:
            raise FailedError("S3AccessDenied", f"{bucket} is not a bucket of {named or own}")
        key = f"{export.folder}/_started"
        if denied := self._buckets.denied_to_export(export.caller, bucket, key):
            raise FailedError(
                "S3AccessDenied",
                f"User: {export.caller} is not authorized to perform: {', '.join(denied)} on "
                f"resource: arn:aws:s3:::{bucket}/{key}",
            )

    async def _put(self, export: Export, key: str, body: bytes) -> str:
        description = export.description
        headers = {"x-amz-server-side-encryption": _s3_sse(description["S3SseAlgorithm"])}
        if "S3SseKmsKeyId" in description:
            headers["x-amz-server-side-encryption-aws-kms-key-id"] = description["S3SseKmsKeyId"]
        return await self._put_object(description["S3Bucket"], key, body, headers)

    async def _put_data(self, export: Export, file: DataFile) -> tuple[DataFile, str, str]:
        key = f"{export.data_folder}/{file.name}"
        return file, await self._put(export, key, file.body), key

    async def _put_manifests(
        self, export: Export, entries: list[tuple[DataFile, str, str]], counts: dict[str, int]
    ) -> None:
        start_micros = round(export.description["StartTime"] * 1_000_000)
        times = {"startTime": iso(start_micros), "endTime": iso(export.end_micros or 0)}
        manifest = f"{export.folder}/manifest"
        lines = manifest_files(entries)
        summary = manifest_summary(
            export.description, f"{manifest}-files.json", counts, times | export.times
        )
        await self._put(export, f"{manifest}-files.json", lines)
        await self._put(export, f"{manifest}-files.md5", md5(lines).encode())
        # The summary last: for readers its presence means that the export is complete.
        await self._put(export, f"{manifest}-summary.md5", md5(summary).encode())
        await self._put(export, f"{manifest}-summary.json", summary)

    # Answers about exports

    def _describe(self, data: dict[str, Any]) -> dict[str, Any]:
        export = self._exports.get(data.get("ExportArn") or "")
        if export is None:
            raise RefusedError(
                "ExportNotFoundException", f"Export not found: {data.get('ExportArn')}"
            )
        return {"ExportDescription": export.description}

    def _list(self, data: dict[str, Any]) -> dict[str, Any]:
        size = data.get("MaxResults", _PAGE_LIMIT)
        if not 1 <= size <= _PAGE_LIMIT:
            raise RefusedError("ValidationException", f"MaxResults must be from 1 to {_PAGE_LIMIT}")
        arns = self._listed(data.get("TableArn"))
        start = _position(arns, data.get("NextToken"))
        page = arns[start : start + size]
        answer: dict[str, Any] = {"ExportSummaries": [self._summarised(arn) for arn in page]}
        if start + size < len(arns):
            answer["NextToken"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
        return answer

    def _listed(self, table_arn: str | None) -> list[str]:
        """Return exports, newest first, of the present table, not of a former one of its name.

        As observed in AWS (ack-api-quirks, DDB-EXPORT-017 and -020); describing still works.
        """
        newest_first = reversed(self._exports.values())
        if table_arn is None:
            return [export.arn for export in newest_first]
        table = self._present_table(table_arn)
        table_id = None if table is None else table["TableId"]
        return [e.arn for e in newest_first if e.description["TableId"] == table_id]

    def _summarised(self, arn: str) -> dict[str, str]:
        description = self._exports[arn].description
        return {name: description[name] for name in ("ExportArn", "ExportStatus", "ExportType")}


def _position(arns: list[str], token: str | None) -> int:
    if token is None:
        return 0
    with contextlib.suppress(ValueError):
        return arns.index(base64.urlsafe_b64decode(token.encode()).decode()) + 1
    raise RefusedError("ValidationException", "NextToken is not valid")


def _s3_sse(algorithm: str) -> str:
    return "aws:kms" if algorithm == "KMS" else algorithm
