"""Full exports: layout byte for byte, content at a point in time, refusals, idempotency."""

import gzip
import json
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline_tests.sandbox.aws.exports.exporting import (
    export_table,
    exported_items,
    finished,
    md5,
    objects,
    refusal,
    table_arn,
)
from cdc_pipeline_tests.sandbox.clients import Aws, key

pytestmark = pytest.mark.slow

_NEVER = datetime(2020, 1, 1, tzinfo=UTC)
_ISO = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.mark.parametrize("prefix", [None, "some/prefix"])
def test_layout_is_that_of_aws(
    aws: Aws, make_table: Callable[..., str], bucket: str, prefix: str | None
) -> None:
    table = make_table()
    for number in range(40):
        aws.dynamodb.put_item(
            TableName=table, Item={**key(f"p{number}"), "b": {"B": b"\x00\xff"}, "s": {"S": "é"}}
        )
    done = export_table(aws, table, bucket, **({"S3Prefix": prefix} if prefix else {}))
    stored = objects(aws, bucket)
    export_id = done["ExportArn"].rsplit("/", 1)[1]
    assert re.fullmatch(r"0\d{13}-[0-9a-f]{8}", export_id)
    root = f"{prefix}/AWSDynamoDB/{export_id}" if prefix else f"AWSDynamoDB/{export_id}"
    fixed = {"_started"} | {
        f"manifest-{kind}.{end}" for kind in ("summary", "files") for end in ("json", "md5")
    }
    data_keys = {k for k in stored if k.startswith(f"{root}/data/")}
    assert stored.keys() - data_keys == {f"{root}/{name}" for name in fixed}
    assert stored[f"{root}/_started"] == b""

    raw = stored[f"{root}/manifest-summary.json"]
    assert stored[f"{root}/manifest-summary.md5"].decode() == md5(raw)
    assert b"\n" not in raw
    assert b": " not in raw
    summary = json.loads(raw)
    table_id = aws.dynamodb.describe_table(TableName=table)["Table"]["TableId"]
    expected = {
        "version": "2020-06-30",
        "exportArn": done["ExportArn"],
        "startTime": summary["startTime"],
        "endTime": summary["endTime"],
        "tableArn": table_arn(aws, table),
        "tableId": table_id,
        "exportTime": summary["exportTime"],
        "s3Bucket": bucket,
        "s3Prefix": prefix,
        "s3SseAlgorithm": "AES256",
        "s3SseKmsKeyId": None,
        "manifestFilesS3Key": f"{root}/manifest-files.json",
        "billedSizeBytes": 40 * (2 + 2 + 2 + 2 + 1 + 2 + 1 + 2) + 30,
        "itemCount": 40,
        "outputFormat": "DYNAMODB_JSON",
    }
    assert list(summary.items()) == list(expected.items())
    for name in ("startTime", "endTime", "exportTime"):
        assert re.fullmatch(_ISO, summary[name])
    assert int(export_id[:14]) == round(
        datetime.fromisoformat(summary["startTime"]).timestamp() * 1000
    )

    files = stored[f"{root}/manifest-files.json"]
    assert stored[f"{root}/manifest-files.md5"].decode() == md5(files)
    assert files.endswith(b"\n")
    entries = [json.loads(line) for line in files.splitlines()]
    assert {entry["dataFileS3Key"] for entry in entries} == data_keys
    assert len(entries) >= 3
    for entry in entries:
        _check_data_file(aws, bucket, root, entry, stored[entry["dataFileS3Key"]])
    assert sum(entry["itemCount"] for entry in entries) == 40

    assert done["ExportManifest"] == f"{root}/manifest-summary.json"
    assert (done["ItemCount"], done["BilledSizeBytes"]) == (40, summary["billedSizeBytes"])
    assert (done["TableId"], done["TableArn"]) == (table_id, summary["tableArn"])
    assert (done["ExportFormat"], done["ExportType"]) == ("DYNAMODB_JSON", "FULL_EXPORT")
    assert done.get("S3Prefix") == prefix
    assert done["StartTime"] <= done["EndTime"]
    assert done["ExportTime"] == datetime.fromisoformat(summary["exportTime"])


def _check_data_file(aws: Aws, bucket: str, root: str, entry: dict[str, Any], body: bytes) -> None:
    assert list(entry) == ["itemCount", "md5Checksum", "etag", "dataFileS3Key"]
    assert re.fullmatch(rf"{root}/data/[a-z2-7]{{26}}\.json\.gz", entry["dataFileS3Key"])
    assert entry["md5Checksum"] == md5(body)
    assert re.fullmatch(r"[0-9a-f]{32}-\d+", entry["etag"])
    stored = aws.s3.head_object(Bucket=bucket, Key=entry["dataFileS3Key"])["ETag"]
    assert stored.strip('"') == entry["etag"]
    text = gzip.decompress(body).decode()
    assert text == "" or text.endswith("\n")
    lines = text.splitlines()
    assert len(lines) == entry["itemCount"]
    for line in lines:
        item = json.loads(line)["Item"]
        assert (item["b"], item["s"]) == ({"B": "AP8="}, {"S": "é"})
        assert line == json.dumps({"Item": item}, ensure_ascii=False, separators=(",", ":"))


def test_there_is_an_empty_file_like_those_of_aws(
    aws: Aws, make_table: Callable[..., str], bucket: str
) -> None:
    table = make_table()
    aws.dynamodb.put_item(TableName=table, Item=key("only"))
    done = export_table(aws, table, bucket)
    stored = objects(aws, bucket)
    files = stored[done["ExportManifest"].replace("summary", "files")].splitlines()
    empty = [e for e in map(json.loads, files) if e["itemCount"] == 0]
    assert empty
    for entry in empty:
        # The sum and the ETag that empty files of real exports have.
        assert entry["md5Checksum"] == "FjvgqIxwymKf1RbbqtrZag=="
        assert entry["etag"] == "7deb4078f238dd87d6af0538152c04e9-1"
        assert len(stored[entry["dataFileS3Key"]]) == 20


class _Replay:
    """Writes to a table and remembers its state after each write: the oracle."""

    def __init__(self, aws: Aws, table: str) -> None:
        self._aws = aws
        self._table = table
        self._rng = Random(3)
        self._state: dict[tuple[str, int], dict[str, Any]] = {}
        self._stop = threading.Event()
        # (before the request, after the answer, state after it)
        self.log: list[tuple[float, float, dict[tuple[str, int], dict[str, Any]]]] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_Replay":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.write()

    def write(self) -> None:
        place = (f"p{self._rng.randrange(8)}", self._rng.randrange(4))
        where = key(*place)
        before = time.time()
        state = dict(self._state)
        kind = self._rng.choice(("put", "put", "delete", "add", "partiql", "transact"))
        count = str(self._rng.randrange(1000))
        if kind == "delete":
            self._aws.dynamodb.delete_item(TableName=self._table, Key=where)
            state.pop(place, None)
        elif kind == "add":
            self._aws.dynamodb.update_item(
                TableName=self._table,
                Key=where,
                UpdateExpression="SET l = list_append(if_not_exists(l, :none), :one)",
                ExpressionAttributeValues={":none": {"L": []}, ":one": {"L": [{"N": count}]}},
            )
            old = state.get(place, where)
            state[place] = {**old, "l": {"L": [*old.get("l", {"L": []})["L"], {"N": count}]}}
        elif kind == "partiql" and place in state:
            self._aws.dynamodb.execute_statement(
                Statement=f'UPDATE "{self._table}" SET q = ? WHERE pk = ? AND sk = ?',
                Parameters=[{"S": count}, *where.values()],
            )
            state[place] = {**state[place], "q": {"S": count}}
        elif kind == "transact":
            put = {"TableName": self._table, "Item": {**where, "t": {"N": count}}}
            self._aws.dynamodb.transact_write_items(TransactItems=[{"Put": put}])
            state[place] = put["Item"]
        else:
            item = {**where, "v": {"N": count}}
            self._aws.dynamodb.put_item(TableName=self._table, Item=item)
            state[place] = item
        self._state = state
        self.log.append((before, time.time(), state))

    def possible_at(self, moment: float) -> list[dict[tuple[str, int], dict[str, Any]]]:
        """Return the states that the table may have had then; one unless a write straddles it."""
        done = [state for _, after, state in self.log if after <= moment]
        under_way = [state for before, after, state in self.log if before <= moment < after]
        return [(done or [{}])[-1], *under_way]


def test_content_is_the_state_at_export_time(
    aws: Aws, make_table: Callable[..., str], bucket: str
) -> None:
    # Recovery depends on no stream.
    table = make_table(stream=False)
    # ExportTime has whole seconds in boto3: cross at least two of them.
    time.sleep(1.0)
    with _Replay(aws, table) as replay:
        time.sleep(1.6)
        past = datetime.now(UTC).replace(microsecond=0)
        described = [
            export_table(aws, table, bucket, ExportTime=past),
            export_table(aws, table, bucket),
        ]
        time.sleep(0.2)
    assert described[0]["ExportTime"] == past
    assert any(after > past.timestamp() + 0.5 for _, after, _ in replay.log)
    seen = []
    for description in described:
        found = exported_items(aws, description)
        by_key = {(item["pk"]["S"], int(item["sk"]["N"])): item for item in found}
        assert len(by_key) == len(found) == description["ItemCount"]
        possible = replay.possible_at(description["ExportTime"].timestamp())
        assert by_key in possible
        seen.append(by_key)
    assert seen[0]
    assert seen[0] != seen[1]
    final = export_table(aws, table, bucket)
    assert {(i["pk"]["S"], int(i["sk"]["N"])): i for i in exported_items(aws, final)} == (
        replay.log[-1][2]
    )


def test_a_cancelled_partiql_transaction_leaves_no_trace(
    aws: Aws, make_table: Callable[..., str], bucket: str
) -> None:
    table = make_table()
    aws.dynamodb.put_item(TableName=table, Item=key("kept"))
    time.sleep(1.1)
    moment = datetime.now(UTC).replace(microsecond=0)
    insert = f"INSERT INTO \"{table}\" VALUE {{'pk': ?, 'sk': ?}}"
    statements = [
        {"Statement": insert, "Parameters": [{"S": name}, {"N": "1"}]} for name in ("new", "kept")
    ]
    with pytest.raises(aws.dynamodb.exceptions.TransactionCanceledException):
        aws.dynamodb.execute_transaction(TransactStatements=statements)
    aws.dynamodb.execute_transaction(TransactStatements=statements[:1])
    before = export_table(aws, table, bucket, ExportTime=moment)
    after = export_table(aws, table, bucket)
    assert exported_items(aws, before) == [key("kept")]
    assert sorted(i["pk"]["S"] for i in exported_items(aws, after)) == ["kept", "new"]


def test_refusals(aws: Aws, make_table: Callable[..., str], bucket: str) -> None:
    on, off = make_table(), make_table(recovery=False)
    arn, call = table_arn(aws, on), aws.dynamodb.export_table_to_point_in_time
    ok = {"TableArn": arn, "S3Bucket": bucket}
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert refusal(call, **ok | {"TableArn": f"{arn}-x"}) == "TableNotFoundException"
    assert (
        refusal(call, **ok | {"TableArn": table_arn(aws, off)})
        == "PointInTimeRecoveryUnavailableException"
    )
    assert refusal(call, **ok, ExportTime=_NEVER) == "InvalidExportTimeException"
    assert refusal(call, **ok, ExportTime=soon) == "InvalidExportTimeException"
    assert refusal(call, **ok, ExportFormat="ION") == "ValidationException"
    assert refusal(call, **ok, ExportType="FULL") == "ValidationException"
    assert (
        refusal(aws.dynamodb.describe_export, ExportArn=f"{arn}/export/01700000000000-00000000")
        == "ExportNotFoundException"
    )
    assert refusal(aws.dynamodb.list_exports, NextToken="none-of-ours") == "ValidationException"
    assert refusal(aws.dynamodb.list_exports, MaxResults=26) == "ValidationException"
    backups = aws.dynamodb.describe_continuous_backups
    assert refusal(backups, TableName="missing") == "TableNotFoundException"
    assert aws.dynamodb.list_exports(TableArn=arn)["ExportSummaries"] == []


def test_a_missing_bucket_fails_the_export(aws: Aws, make_table: Callable[..., str]) -> None:
    done = export_table(aws, make_table(), "no-such-bucket-here")
    assert (done["ExportStatus"], done["FailureCode"]) == ("FAILED", "S3NoSuchBucket")
    assert "no-such-bucket-here" in done["FailureMessage"]
    assert "ExportManifest" not in done


def test_client_token_makes_it_idempotent(
    aws: Aws, make_table: Callable[..., str], bucket: str
) -> None:
    arn, call = table_arn(aws, make_table()), aws.dynamodb.export_table_to_point_in_time
    wanted = {"TableArn": arn, "S3Bucket": bucket, "ClientToken": "once"}
    first = call(**wanted)["ExportDescription"]
    assert call(**wanted)["ExportDescription"]["ExportArn"] == first["ExportArn"]
    done = finished(aws, first["ExportArn"])
    assert call(**wanted)["ExportDescription"] == done
    assert refusal(call, **wanted, S3Prefix="other") == "ExportConflictException"
    other = call(**wanted | {"ClientToken": "twice"})["ExportDescription"]
    assert other["ExportArn"] != first["ExportArn"]
    assert done["ClientToken"] == "once"


def test_list_exports_pages(aws: Aws, make_table: Callable[..., str], bucket: str) -> None:
    table = make_table()
    done = [export_table(aws, table, bucket)["ExportArn"] for _ in range(2)]
    done.append(export_table(aws, table, "no-such-bucket-here")["ExportArn"])
    pages, token = [], {}
    while True:
        page = aws.dynamodb.list_exports(TableArn=table_arn(aws, table), MaxResults=1, **token)
        pages.append(page["ExportSummaries"])
        if "NextToken" not in page:
            break
        token = {"NextToken": page["NextToken"]}
    assert pages == [
        [{"ExportArn": arn, "ExportStatus": status, "ExportType": "FULL_EXPORT"}]
        for arn, status in zip(done[::-1], ["FAILED", "COMPLETED", "COMPLETED"], strict=True)
    ]
    everything = aws.dynamodb.list_exports()["ExportSummaries"]
    assert len(everything) <= 25


def test_exports_are_those_of_the_table_that_has_the_name_now(
    aws: Aws, make_table: Callable[..., str], bucket: str
) -> None:
    table = make_table()
    arn = table_arn(aws, table)
    done = export_table(aws, table, bucket, ClientToken="of-the-first")
    listed = aws.dynamodb.list_exports
    assert [e["ExportArn"] for e in listed(TableArn=arn)["ExportSummaries"]] == [done["ExportArn"]]
    aws.dynamodb.delete_table(TableName=table)
    assert listed(TableArn=arn)["ExportSummaries"] == []
    again = {"TableArn": arn, "S3Bucket": bucket, "ClientToken": "of-the-first"}
    call = aws.dynamodb.export_table_to_point_in_time
    assert refusal(call, **again) == "TableNotFoundException"
    make_table(name=table)
    assert listed(TableArn=arn)["ExportSummaries"] == []
    assert finished(aws, done["ExportArn"]) == done
    assert done["ExportArn"] in [e["ExportArn"] for e in listed()["ExportSummaries"]]


def test_a_failure_that_was_ordered(aws: Aws, make_table: Callable[..., str], bucket: str) -> None:
    table = make_table()
    control(aws.endpoint_url, fail_exports=2, failure_code="Odd", failure_message="as told")
    wanted = {"ClientToken": "fails", "S3Prefix": "p"}
    first = export_table(aws, table, bucket, **wanted)
    assert (first["ExportStatus"], first["FailureCode"]) == ("FAILED", "Odd")
    assert first["FailureMessage"] == "as told"
    assert not [k for k in objects(aws, bucket) if "manifest" in k]
    call = aws.dynamodb.export_table_to_point_in_time
    repeated = call(TableArn=table_arn(aws, table), S3Bucket=bucket, **wanted)
    assert repeated["ExportDescription"] == first
    assert export_table(aws, table, bucket)["ExportStatus"] == "FAILED"
    assert control(aws.endpoint_url)["fail_exports"] == 0
    assert export_table(aws, table, bucket)["ExportStatus"] == "COMPLETED"


def test_restorable_times_are_true(aws: Aws, make_table: Callable[..., str]) -> None:
    def described() -> dict[str, Any]:
        answer = aws.dynamodb.describe_continuous_backups(TableName=table)
        return answer["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]

    def switch(on: bool) -> None:
        aws.dynamodb.update_continuous_backups(
            TableName=table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": on}
        )

    table = make_table(recovery=False)
    assert described() == {"PointInTimeRecoveryStatus": "DISABLED"}
    before = datetime.now(UTC)
    switch(True)
    enabled = datetime.now(UTC) + timedelta(milliseconds=1)
    first = described()
    assert first["RecoveryPeriodInDays"] == 35
    assert before <= first["EarliestRestorableDateTime"] <= enabled
    time.sleep(0.05)
    switch(True)
    again = described()
    assert again["EarliestRestorableDateTime"] == first["EarliestRestorableDateTime"]
    for found in (first, again):
        # It stays there for the five minutes that the latest time is behind the present.
        assert found["LatestRestorableDateTime"] == first["EarliestRestorableDateTime"]
    switch(False)
    switch(True)
    assert described()["EarliestRestorableDateTime"] > first["EarliestRestorableDateTime"]
