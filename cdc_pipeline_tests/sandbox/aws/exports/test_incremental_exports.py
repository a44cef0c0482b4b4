"""Incremental exports: layout, lines, windows and refusals, on a clock that the tests set."""

import gzip
import itertools
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.sandbox.errors import SandboxError
from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.sandbox.aws.exports.exporting import (
    export_table,
    exported_items,
    exported_lines,
    finished,
    md5,
    objects,
    refusal,
    refusal_with_message,
)
from cdc_pipeline_tests.sandbox.clients import Aws, connect, key
from cdc_pipeline_tests.sandbox.timed import TimedTable, timed_sandbox

_EMPTY_MD5 = "FjvgqIxwymKf1RbbqtrZag=="


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    """A sandbox of this module's own: its clock stands."""
    with timed_sandbox() as connected:
        yield connected


@pytest.fixture
def table(aws: Aws) -> TimedTable:
    return TimedTable(aws)


_numbers = itertools.count(1)


@pytest.fixture
def bucket(aws: Aws) -> str:
    name = f"incremental-{next(_numbers)}"
    aws.s3.create_bucket(Bucket=name)
    return name


def _wanted(table: TimedTable, bucket: str, **more: Any) -> dict[str, Any]:
    return {
        "TableArn": table.arn,
        "S3Bucket": bucket,
        "ExportType": "INCREMENTAL_EXPORT",
        "IncrementalExportSpecification": more,
    }


# Layout


@pytest.mark.parametrize("prefix", [None, "some/prefix"])
def test_layout_is_that_of_aws(
    aws: Aws, table: TimedTable, bucket: str, prefix: str | None
) -> None:
    start = table.go(seconds=60)
    for number in range(40):
        table.put(key(f"p{number}"))
    end = table.go(seconds=900)
    table.go(seconds=301)
    done = table.export_window(bucket, start, end, prefix=prefix)
    stored = objects(aws, bucket)
    export_id = done["ExportArn"].rsplit("/", 1)[1]
    # Whole seconds, as in AWS.
    assert re.fullmatch(r"0\d{10}000-[0-9a-f]{8}", export_id)
    shared = f"{prefix}/AWSDynamoDB" if prefix else "AWSDynamoDB"
    root = f"{shared}/{export_id}"
    data_keys = {k for k in stored if k.startswith(f"{shared}/data/")}
    fixed = {"_started"} | {
        f"manifest-{kind}.{end}" for kind in ("summary", "files") for end in ("json", "md5")
    }
    assert stored.keys() - data_keys == {f"{root}/{name}" for name in fixed}
    assert stored[f"{root}/_started"] == b""

    raw = stored[f"{root}/manifest-summary.json"]
    assert stored[f"{root}/manifest-summary.md5"].decode() == md5(raw)
    assert raw == json.dumps(json.loads(raw), separators=(",", ":")).encode()
    summary = json.loads(raw)
    expected = {
        "version": "2023-08-01",
        "exportArn": done["ExportArn"],
        "startTime": _iso(int(export_id[:14]) * 1000),
        "endTime": summary["endTime"],
        "tableArn": table.arn,
        "tableId": table.id,
        "exportFromTime": _iso(start),
        "exportToTime": _iso(end),
        "s3Bucket": bucket,
        "s3Prefix": prefix,
        "s3SseAlgorithm": "AES256",
        "s3SseKmsKeyId": None,
        "manifestFilesS3Key": f"{root}/manifest-files.json",
        "billedSizeBytes": 10_000_000,
        "itemCount": 40,
        "outputFormat": "DYNAMODB_JSON",
        "outputView": "NEW_AND_OLD_IMAGES",
        "exportType": "INCREMENTAL_EXPORT",
    }
    assert list(summary.items()) == list(expected.items())

    lines = stored[f"{root}/manifest-files.json"]
    assert stored[f"{root}/manifest-files.md5"].decode() == md5(lines)
    entries = [json.loads(line) for line in lines.splitlines()]
    assert {entry["dataFileS3Key"] for entry in entries} == data_keys
    assert sum(entry["itemCount"] > 0 for entry in entries) > 1
    assert any(entry["md5Checksum"] == _EMPTY_MD5 for entry in entries)
    for entry in entries:
        assert list(entry) == ["itemCount", "md5Checksum", "etag", "dataFileS3Key"]
        assert re.fullmatch(rf"{shared}/data/[a-z2-7]{{26}}\.json\.gz", entry["dataFileS3Key"])
        body = stored[entry["dataFileS3Key"]]
        assert entry["md5Checksum"] == md5(body)
        text = gzip.decompress(body).decode()
        assert text.count("\n") == len(text.splitlines()) == entry["itemCount"]
        assert (entry["itemCount"] == 0) == (entry["md5Checksum"] == _EMPTY_MD5)

    assert "ExportTime" not in done
    assert done["ExportType"] == "INCREMENTAL_EXPORT"
    assert done["IncrementalExportSpecification"] == {
        "ExportFromTime": _time(start),
        "ExportToTime": _time(end),
        "ExportViewType": "NEW_AND_OLD_IMAGES",
    }
    assert done["ExportManifest"] == f"{root}/manifest-summary.json"
    assert (done["ItemCount"], done["BilledSizeBytes"]) == (40, 10_000_000)
    assert (done["TableId"], done.get("S3Prefix")) == (table.id, prefix)
    assert done["StartTime"] == datetime.fromisoformat(summary["startTime"])
    assert done["EndTime"] == datetime.fromisoformat(summary["endTime"])
    listed = aws.dynamodb.list_exports(TableArn=table.arn)["ExportSummaries"]
    assert listed == [
        {name: done[name] for name in ("ExportArn", "ExportStatus", "ExportType")},
    ]


def test_exports_of_a_prefix_share_their_data_folder(
    aws: Aws, table: TimedTable, bucket: str
) -> None:
    start = table.go(seconds=60)
    table.put(key("a"))
    middle = table.go(seconds=900)
    table.put(key("b"))
    end = table.go(seconds=900)
    table.go(seconds=301)
    first = table.export_window(bucket, start, middle)
    second = table.export_window(bucket, middle, end)
    export_table(aws, table.name, bucket)
    stored = objects(aws, bucket)
    names = [
        json.loads(line)["dataFileS3Key"]
        for done in (first, second)
        for line in stored[done["ExportManifest"].replace("summary", "files")].splitlines()
    ]
    # Together they are the folder; the full export's files are elsewhere.
    assert sorted(names) == sorted(k for k in stored if k.startswith("AWSDynamoDB/data/"))
    assert len(names) == len(set(names))
    assert [_line["Keys"]["pk"]["S"] for _line in _lines(aws, first)] == ["a"]
    assert [_line["Keys"]["pk"]["S"] for _line in _lines(aws, second)] == ["b"]


def test_a_quiet_window_is_empty_files_and_bills_ten_megabytes(
    aws: Aws, table: TimedTable, bucket: str
) -> None:
    table.put(key("before"))
    start, end = table.go(seconds=60), table.go(seconds=900)
    table.go(seconds=301)
    done = table.export_window(bucket, start, end)
    assert (done["ItemCount"], done["BilledSizeBytes"]) == (0, 10_000_000)
    files = exported_lines(aws, done)
    assert files
    assert not any(files)


def test_a_file_holds_a_hash_range_and_no_order(aws: Aws, table: TimedTable, bucket: str) -> None:
    start = table.go(seconds=60)
    for pk, sk in itertools.product("abcdefgh", range(6)):
        table.put(key(pk, sk))
    end = table.go(seconds=900)
    table.go(seconds=301)
    runs = [exported_lines(aws, table.export_window(bucket, start, end)) for _ in range(2)]
    # Shuffled the same way each time.
    assert runs[0] == runs[1]
    of_file = [{json.loads(line)["Keys"]["pk"]["S"] for line in file} for file in runs[0]]
    assert sum(len(pks) for pks in of_file) == len(set().union(*of_file)) == 8
    times = [_micros(json.loads(line)) for line in max(runs[0], key=len)]
    assert times != sorted(times)
    assert times != sorted(times, reverse=True)


# Lines


_OLD = {"b": {"B": b"\x00\xff"}, "é": {"S": "ü\n"}, "n": {"N": "1.10"}, "z": {"NULL": True}}
_NEW = {"bs": {"BS": [b"\x01"]}, "l": {"L": [{"M": {}}]}, "empty": {"S": ""}}
_WIRE_OLD = {"b": {"B": "AP8="}, "n": {"N": "1.1"}, "z": {"NULL": True}, "é": {"S": "ü\n"}}
_WIRE_NEW = {"bs": {"BS": ["AQ=="]}, "empty": {"S": ""}, "l": {"L": [{"M": {}}]}}


@pytest.mark.parametrize("view", [None, "NEW_AND_OLD_IMAGES", "NEW_IMAGE"])
def test_lines_by_kind_of_change_and_view(
    aws: Aws, table: TimedTable, bucket: str, view: str | None
) -> None:
    for name in ("updated", "deleted", "reinserted", "changed back", "same", "untouched"):
        table.put({**key(name), **_OLD})
    start = table.go(seconds=60)
    at = {}
    at["inserted"] = table.put({**key("inserted"), **_NEW})
    at["updated"] = table.put({**key("updated"), **_NEW})
    at["deleted"] = table.delete(key("deleted"))
    table.delete(key("reinserted"))
    at["reinserted"] = table.put({**key("reinserted"), **_OLD})
    table.put({**key("changed back"), **_NEW})
    at["changed back"] = table.put({**key("changed back"), **_OLD})
    table.put({**key("same"), **_OLD})
    table.put(key("gone again"))
    table.delete(key("gone again"))
    end = table.go(seconds=900)
    for name in ("inserted", "updated", "late"):
        table.put({**key(name), "late": {"BOOL": True}})
    table.go(seconds=301)
    done = table.export_window(bucket, start, end, view=view)

    images: dict[str, tuple[Any, Any]] = {
        "inserted": (None, _WIRE_NEW),
        "updated": (_WIRE_OLD, _WIRE_NEW),
        "deleted": (_WIRE_OLD, None),
        "reinserted": (_WIRE_OLD, _WIRE_OLD),
        "changed back": (_WIRE_OLD, _WIRE_OLD),
    }
    expected = []
    for name, (old, new) in images.items():
        line = {
            "Metadata": {"WriteTimestampMicros": {"N": str(at[name])}},
            "Keys": {"pk": {"S": name}, "sk": {"N": "1"}},
        }
        if old is not None and view != "NEW_IMAGE":
            line["OldImage"] = dict(sorted({**key(name), **old}.items()))
        if new is not None:
            line["NewImage"] = dict(sorted({**key(name), **new}.items()))
        expected.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
    assert sorted(itertools.chain(*exported_lines(aws, done))) == sorted(expected)
    shown = view or "NEW_AND_OLD_IMAGES"
    assert done["IncrementalExportSpecification"]["ExportViewType"] == shown
    summary = json.loads(objects(aws, bucket)[done["ExportManifest"]])
    assert summary["outputView"] == shown


@pytest.mark.parametrize("spelling", ["typed", "number", "string"])
def test_spellings_of_the_write_time(
    aws: Aws, table: TimedTable, bucket: str, spelling: str
) -> None:
    start = table.go(seconds=60)
    at = table.put(key("a"))
    end = table.go(seconds=900)
    table.go(seconds=301)
    control(aws.endpoint_url, write_time=spelling)
    try:
        (line,) = _lines(aws, table.export_window(bucket, start, end))
    finally:
        control(aws.endpoint_url, write_time="typed")
    spelled = {"typed": {"N": str(at)}, "number": at, "string": str(at)}
    assert line["Metadata"] == {"WriteTimestampMicros": spelled[spelling]}


def test_partition_key_alone_and_writes_of_every_kind(aws: Aws, bucket: str) -> None:
    table = TimedTable(aws, sort_key=False)
    start = table.go(seconds=60)
    names = ("batch", "transaction", "partiql", "update", "expired")
    aws.dynamodb.batch_write_item(
        RequestItems={table.name: [{"PutRequest": {"Item": {"pk": {"S": "batch"}}}}]}
    )
    aws.dynamodb.transact_write_items(
        TransactItems=[{"Put": {"TableName": table.name, "Item": {"pk": {"S": "transaction"}}}}]
    )
    aws.dynamodb.execute_statement(
        Statement=f"INSERT INTO \"{table.name}\" VALUE {{'pk': 'partiql'}}"
    )
    aws.dynamodb.update_item(TableName=table.name, Key={"pk": {"S": "update"}})
    table.put_expiring({"pk": {"S": "expired"}}, seconds=5000)
    middle = table.go(seconds=900)
    at = table.expire({"pk": {"S": "expired"}})
    end = table.go(seconds=900)
    table.go(seconds=301)
    first = _lines(aws, table.export_window(bucket, start, middle))
    assert sorted(line["NewImage"]["pk"]["S"] for line in first) == sorted(names)
    assert all(line["Keys"] == {"pk": line["NewImage"]["pk"]} for line in first)
    (line,) = _lines(aws, table.export_window(bucket, middle, end))
    assert list(line) == ["Metadata", "Keys", "OldImage"]
    assert (line["Keys"], _micros(line)) == ({"pk": {"S": "expired"}}, at)


def test_billed_by_the_size_of_what_changed(aws: Aws, table: TimedTable, bucket: str) -> None:
    start = table.go(seconds=60)
    for number in range(30):
        table.put({**key(str(number)), "t": {"S": "x" * 390_000}})
    end = table.go(seconds=900)
    table.go(seconds=301)
    done = table.export_window(bucket, start, end)
    assert 30 * 390_000 < done["BilledSizeBytes"] < 30 * 391_000


# Windows


def test_without_an_end_it_is_the_second_of_the_request(
    aws: Aws, table: TimedTable, bucket: str
) -> None:
    start = table.go(seconds=60)
    table.put(key("a"))
    now = table.go(seconds=1000, micros=700_001)
    table.put(key("this second"))
    done = table.export_window(bucket, start, None)
    end = now // 1_000_000 * 1_000_000
    assert done["IncrementalExportSpecification"]["ExportToTime"] == _time(end)
    assert done["StartTime"] == _time(end)
    assert [line["Keys"]["pk"]["S"] for line in _lines(aws, done)] == ["a"]


# (from, to) in seconds after recovery was turned on; it is 2 days later.
_NOW = 2 * 86_400
_BEYOND = "Point in Time Recovery is not available for specified export time"
_REFUSED_WINDOWS = {
    "before the table": (-62, 1000, "table creation time : "),
    "before recovery": (-5, 1000, _BEYOND),
    "in the future": (_NOW - 1000, _NOW + 1, "cannot be greater than the current time : "),
    "after the latest restorable time": (_NOW - 2000, _NOW - 299, _BEYOND),
    "empty": (5000, 5000, "should not be greater or equal to incremental export period to time"),
    "reversed": (5000, 4000, "should not be greater or equal to incremental export period to"),
    "a second too short": (5000, 5899, "to time is less than 15 minutes"),
    "a second too long": (5000, 5000 + 86_401, "to time is greater than 24 hours"),
    "to now, too short": (_NOW - 899, None, "to time is less than 15 minutes"),
    "to now, too long": (_NOW - 86_401, None, "to time is greater than 24 hours"),
}
_ACCEPTED_WINDOWS = {
    # First: each export that is accepted takes a microsecond.
    "to the latest restorable time": (_NOW - 2000, _NOW - 300),
    "the shortest": (5000, 5900),
    "the longest": (5000, 5000 + 86_400),
    "from the first restorable second": (1, 1000),
    "to now, the shortest": (_NOW - 900, None),
    "to now, the longest": (_NOW - 86_400, None),
}


def test_windows_that_are_refused_and_accepted(aws: Aws, table: TimedTable, bucket: str) -> None:
    zero = table.enabled
    table.stand_at(zero + _NOW * 1_000_000)
    call = aws.dynamodb.export_table_to_point_in_time
    for name, (start, end, message) in _REFUSED_WINDOWS.items():
        code, said = refusal_with_message(call, **_window(table, bucket, start, end))
        assert (name, code) == (name, "InvalidExportTimeException")
        assert message in said, name
    assert aws.dynamodb.list_exports(TableArn=table.arn)["ExportSummaries"] == []
    for start, end in _ACCEPTED_WINDOWS.values():
        accepted = call(**_window(table, bucket, start, end))["ExportDescription"]
        assert finished(aws, accepted["ExportArn"])["ExportStatus"] == "COMPLETED"


def _window(table: TimedTable, bucket: str, start: int, end: int | None) -> dict[str, Any]:
    times = {"ExportFromTime": _time(table.enabled + start * 1_000_000)}
    if end is not None:
        times["ExportToTime"] = _time(table.enabled + end * 1_000_000)
    return _wanted(table, bucket, **times)


def test_the_recovery_period_moves_on(aws: Aws, table: TimedTable, bucket: str) -> None:
    aws.dynamodb.update_continuous_backups(
        TableName=table.name,
        PointInTimeRecoverySpecification={
            "PointInTimeRecoveryEnabled": True,
            "RecoveryPeriodInDays": 1,
        },
    )
    table.stand_at(table.enabled + _NOW * 1_000_000)
    call = aws.dynamodb.export_table_to_point_in_time
    too_old = _window(table, bucket, _NOW - 86_401, _NOW - 80_000)
    assert refusal_with_message(call, **too_old) == ("InvalidExportTimeException", _BEYOND)
    assert call(**_window(table, bucket, _NOW - 86_400, _NOW - 80_000))
    found = aws.dynamodb.describe_continuous_backups(TableName=table.name)
    found = found["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
    now = _time(table.enabled + _NOW * 1_000_000)
    assert found["EarliestRestorableDateTime"] == now - timedelta(days=1)
    assert found["LatestRestorableDateTime"] == now - timedelta(minutes=5)


def test_recovery_turned_off_and_on_has_lost_what_was(
    aws: Aws, table: TimedTable, bucket: str
) -> None:
    table.put(key("before"))
    lost = table.go(seconds=2000)
    table.recovery(on=False)
    call = aws.dynamodb.export_table_to_point_in_time
    wanted = _wanted(table, bucket, ExportFromTime=_time(lost - 1_000_000_000))
    short = _wanted(table, bucket, ExportFromTime=_time(lost - 1_000_000))
    for window in (wanted, short):
        assert refusal(call, **window) == "PointInTimeRecoveryUnavailableException"
    # As AWS was seen to answer: the creation of the table is looked at first.
    older = _wanted(table, bucket, ExportFromTime=_time(lost - 86_400_000_000))
    assert "table creation time" in refusal_with_message(call, **older)[1]
    table.put(key("while it was off"))
    start = table.go(seconds=10)
    table.recovery(on=True)
    at = table.put(key("after"))
    end = table.go(seconds=2000)
    table.go(seconds=301)
    assert refusal_with_message(call, **wanted) == ("InvalidExportTimeException", _BEYOND)
    (line,) = _lines(aws, table.export_window(bucket, start, end))
    assert (line["Keys"], _micros(line)) == (key("after"), at)


def test_a_window_of_the_table_that_had_the_name_before(
    aws: Aws, table: TimedTable, bucket: str
) -> None:
    start = table.go(seconds=60)
    table.put(key("of the first"))
    table.go(seconds=1300)
    first = table.export_window(bucket, start, start + 900_000_000)
    aws.dynamodb.delete_table(TableName=table.name)
    call = aws.dynamodb.export_table_to_point_in_time
    wanted = _wanted(table, bucket, ExportFromTime=_time(start))
    assert refusal(call, **wanted) == "TableNotFoundException"
    table.go(seconds=10)
    again = TimedTable(aws, name=table.name)
    again.go(seconds=1300)
    code, message = refusal_with_message(call, **wanted)
    assert code == "InvalidExportTimeException"
    assert message.endswith(f"table creation time : {_time(start):%Y-%m-%dT%H:%M:%SZ}")
    second = again.export_window(bucket, again.enabled + 1_000_000, None)
    assert _lines(aws, second) == []
    assert (first["TableArn"], first["TableId"]) == (second["TableArn"], table.id)
    assert second["TableId"] == again.id != table.id
    assert finished(aws, first["ExportArn"]) == first
    assert len(_lines(aws, first)) == 1


# Requests


def test_parameters_that_do_not_fit(aws: Aws, table: TimedTable, bucket: str) -> None:
    start = _time(table.go(seconds=60))
    table.go(seconds=2000)
    call = aws.dynamodb.export_table_to_point_in_time
    plain = {"TableArn": table.arn, "S3Bucket": bucket}
    window = {"IncrementalExportSpecification": {"ExportFromTime": start}}
    incremental = {"ExportType": "INCREMENTAL_EXPORT"}
    cases = [
        (window, "Export Type expected to be Incremental Export when incremental export spec"),
        ({**window, "ExportType": "FULL_EXPORT"}, "Specification should not be provided"),
        (incremental, "Incremental Export Specification expected when export type is set as"),
        (
            {**incremental, "IncrementalExportSpecification": {}},
            "ExportFromTime must be provided in IncrementalExportSpecification",
        ),
        (
            {**incremental, "IncrementalExportSpecification": {"ExportToTime": start}},
            "ExportFromTime must be provided in IncrementalExportSpecification",
        ),
        (
            {
                **incremental,
                "IncrementalExportSpecification": {
                    "ExportFromTime": start,
                    "ExportViewType": "NEW_IMAGES",
                },
            },
            "'NEW_IMAGES' at 'incrementalExportSpecification.exportViewType' failed",
        ),
        ({**incremental, **window, "ExportTime": start}, "ExportTime is not allowed"),
        ({**incremental, **window, "ExportFormat": "ION"}, "not in ION"),
        (
            {**incremental, **window, "FilterSpecification": {"FilterExpression": "a = b"}},
            "FilterSpecification is not supported",
        ),
    ]
    for more, expected in cases:
        code, message = refusal_with_message(call, **plain, **more)
        assert code == "ValidationException"
        assert expected in message
    assert call(**plain, **incremental, **window)["ExportDescription"]["ExportStatus"]


def test_client_token_makes_it_idempotent(aws: Aws, table: TimedTable, bucket: str) -> None:
    start = table.go(seconds=60)
    table.go(seconds=2000)
    call = aws.dynamodb.export_table_to_point_in_time
    times = {"ExportFromTime": _time(start), "ExportToTime": _time(start + 1_000_000_000)}
    wanted = {**_wanted(table, bucket, **times), "ClientToken": "a window"}
    first = call(**wanted)["ExportDescription"]
    assert first["IncrementalExportSpecification"]["ExportFromTime"] == _time(start)
    done = finished(aws, first["ExportArn"])
    # Also when its window could not be asked for any more.
    table.recovery(on=False)
    assert call(**wanted)["ExportDescription"] == done
    later = times | {"ExportToTime": _time(start + 1_001_000_000)}
    for other in (
        wanted | {"S3Prefix": "other"},
        wanted | {"IncrementalExportSpecification": later},
        {name: wanted[name] for name in ("TableArn", "S3Bucket", "ClientToken")},
    ):
        assert refusal_with_message(call, **other) == (
            "ExportConflictException",
            "Export conflict: Duplicate request detected with conflicting parameters",
        )
    table.go(seconds=8 * 3600 + 1)
    assert refusal(call, **wanted) == "PointInTimeRecoveryUnavailableException"


def test_an_export_that_fails_leaves_no_manifest(aws: Aws, table: TimedTable, bucket: str) -> None:
    start = table.go(seconds=60)
    table.put(key("a"))
    table.go(seconds=2000)
    control(aws.endpoint_url, fail_exports=1)
    failed = table.export_window(bucket, start, start + 900_000_000)
    assert (failed["ExportStatus"], failed["FailureCode"]) == ("FAILED", "S3AccessDenied")
    assert "ExportManifest" not in failed
    assert not [name for name in objects(aws, bucket) if "manifest" in name]
    done = table.export_window(bucket, start, start + 900_000_000)
    assert len(_lines(aws, done)) == 1
    missing = table.export_window("no-such-bucket-here", start, start + 900_000_000)
    assert missing["FailureCode"] == "S3NoSuchBucket"


def test_orders_that_make_no_sense(aws: Aws) -> None:
    for order in ({"stand_at": 1}, {"write_time": "roman"}, {"unheard_of": 1}, {"stand_at": None}):
        with pytest.raises(SandboxError, match="refused"):
            control(aws.endpoint_url, **order)


@pytest.mark.slow
def test_a_newcomers_sandbox_needs_no_quarter_of_an_hour() -> None:
    with SandboxProcess(
        exports=ExportOptions(delay_seconds=0, least_window_seconds=1, restorable_lag_seconds=0)
    ) as process:
        aws = connect(process.endpoint_url)
        aws.s3.create_bucket(Bucket="quick")
        table = TimedTable(aws, wait=True)
        aws.dynamodb.put_item(TableName=table.name, Item=key("a"))
        start = int(time.time()) + 1
        time.sleep(start + 0.1 - time.time())
        aws.dynamodb.put_item(TableName=table.name, Item=key("b"))
        time.sleep(start + 1.1 - time.time())
        aws.dynamodb.put_item(TableName=table.name, Item=key("c"))
        done = table.export_window("quick", start * 1_000_000, (start + 1) * 1_000_000)
        assert [line["Keys"]["pk"]["S"] for line in _lines(aws, done)] == ["b"]
        full = export_table(aws, table.name, "quick")
        assert len(exported_items(aws, full)) == 3
        call = aws.dynamodb.export_table_to_point_in_time
        short = {"ExportFromTime": _time(start * 1_000_000 + 500_000)}
        wanted = _wanted(table, "quick", **short, ExportToTime=_time((start + 1) * 1_000_000))
        assert "less than 1 seconds" in refusal_with_message(call, **wanted)[1]


def _lines(aws: Aws, done: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for file in exported_lines(aws, done) for line in file]


def _micros(line: dict[str, Any]) -> int:
    return int(line["Metadata"]["WriteTimestampMicros"]["N"])


def _time(micros: int) -> datetime:
    return datetime.fromtimestamp(micros // 1_000_000, UTC) + timedelta(
        microseconds=micros % 1_000_000
    )


def _iso(micros: int) -> str:
    return f"{_time(micros):%Y-%m-%dT%H:%M:%S}.{micros // 1000 % 1000:03d}Z"
