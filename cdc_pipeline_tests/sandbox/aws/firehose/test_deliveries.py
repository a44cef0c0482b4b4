"""Firehose: what its objects look like, what Lambda does to them, and where failures go."""

import base64
import gzip
import io
import itertools
import json
import re
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from cdc_pipeline_tests.sandbox.clients import Aws, objects, wait_for

pytestmark = pytest.mark.slow

_ROLE = "arn:aws:iam::000000000000:role/firehose"
_DAY = "!{timestamp:yyyy/MM/dd}/"
_numbers = itertools.count(1)

# Upper case; drops "drop", fails "fail", loses "lose", raises for "raise".
_CODE = """
import base64

def handler(event, context):
    answers = []
    for record in event["records"]:
        text = base64.b64decode(record["data"]).decode()
        if text == "raise":
            raise ValueError
        result = {"drop": "Dropped", "fail": "ProcessingFailed"}.get(text, "Ok")
        shard = record["kinesisRecordMetadata"]["shardId"] if "shard" in text else ""
        data = base64.b64encode((text.upper() + shard).encode()).decode()
        if text != "lose":
            answers.append({"recordId": record["recordId"], "result": result, "data": data})
    return {"records": answers}
"""


@pytest.fixture
def make_delivery(aws: Aws, bucket: str) -> Callable[..., str]:
    """Return a function that makes a delivery stream to `bucket` and returns its name."""

    def make(source: str | None = None, **config: Any) -> str:
        name = f"delivery-{next(_numbers)}"
        where: dict[str, Any] = {"RoleARN": _ROLE, "BucketARN": f"arn:aws:s3:::{bucket}"}
        hints = {"SizeInMBs": 64, "IntervalInSeconds": 1}
        if backup := config.pop("backup", None):
            config["S3BackupMode"] = "Enabled"
            config["S3BackupConfiguration"] = {**where, "BufferingHints": hints, **backup}
        reading: dict[str, Any] = {"DeliveryStreamType": "DirectPut"}
        if source:
            stream = aws.kinesis.describe_stream_summary(StreamName=source)
            arn = stream["StreamDescriptionSummary"]["StreamARN"]
            reading = {
                "DeliveryStreamType": "KinesisStreamAsSource",
                "KinesisStreamSourceConfiguration": {"KinesisStreamARN": arn, "RoleARN": _ROLE},
            }
        aws.firehose.create_delivery_stream(
            DeliveryStreamName=name,
            **reading,
            ExtendedS3DestinationConfiguration={**where, "BufferingHints": hints, **config},
        )
        return name

    return make


@pytest.fixture(scope="module")
def function(aws: Aws) -> str:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("code.py", _CODE)
    made = aws.lambdas.create_function(
        FunctionName="upper",
        Runtime="python3.12",
        Handler="code.handler",
        Role=_ROLE,
        Code={"ZipFile": content.getvalue()},
    )
    return made["FunctionArn"]


def _put(aws: Aws, stream: str, *texts: str) -> None:
    answer = aws.firehose.put_record_batch(
        DeliveryStreamName=stream, Records=[{"Data": text.encode()} for text in texts]
    )
    assert answer["FailedPutCount"] == 0


def _processing(*processors: tuple[str, dict[str, str]]) -> dict[str, Any]:
    return {
        "Enabled": True,
        "Processors": [
            {
                "Type": kind,
                "Parameters": [
                    {"ParameterName": name, "ParameterValue": value}
                    for name, value in parameters.items()
                ],
            }
            for kind, parameters in processors
        ],
    }


def test_one_object_of_many_records_and_a_raw_backup(
    aws: Aws, bucket: str, make_delivery: Callable[..., str]
) -> None:
    stream = make_delivery(
        Prefix=f"data/{_DAY}",
        ErrorOutputPrefix="error/!{firehose:error-output-type}/",
        CompressionFormat="GZIP",
        ProcessingConfiguration=_processing(("AppendDelimiterToRecord", {"Delimiter": "\\n"})),
        backup={"Prefix": "raw/"},
    )
    before = datetime.now(UTC)
    _put(aws, stream, '{"a":1}', '{"a":2}', '{"a":3}')
    found = wait_for(lambda: found if len(found := objects(aws, bucket)) == 2 else None)
    (raw, raw_body), (data, data_body) = sorted(found.items(), key=lambda entry: entry[0][0] != "r")
    assert raw_body == b'{"a":1}{"a":2}{"a":3}'
    assert gzip.decompress(data_body) == b'{"a":1}\n{"a":2}\n{"a":3}\n'
    name = rf"{stream}-1-\d{{4}}(-\d\d){{5}}-[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}"
    assert re.fullmatch(rf"data/\d{{4}}/\d\d/\d\d/{name}\.gz", data)
    assert re.fullmatch(rf"raw/\d{{4}}/\d\d/\d\d/\d\d/{name}", raw)
    days = {f"data/{moment:%Y/%m/%d}/" for moment in (before, datetime.now(UTC))}
    assert any(data.startswith(day) for day in days)


def test_size_is_a_hint_too(aws: Aws, bucket: str, make_delivery: Callable[..., str]) -> None:
    stream = make_delivery(BufferingHints={"SizeInMBs": 1, "IntervalInSeconds": 900})
    _put(aws, stream, "x" * 700_000)
    _put(aws, stream, "y" * 700_000)
    (body,) = wait_for(lambda: objects(aws, bucket)).values()
    assert body == b"x" * 700_000 + b"y" * 700_000


def test_lambda_takes_records_of_kinesis_and_its_failures_are_kept(
    aws: Aws, bucket: str, make_delivery: Callable[..., str], function: str
) -> None:
    source = f"source-{next(_numbers)}"
    aws.kinesis.create_stream(StreamName=source, ShardCount=1)
    aws.kinesis.put_record(StreamName=source, PartitionKey="0", Data=b"too early")
    make_delivery(
        source,
        Prefix="data/",
        ErrorOutputPrefix="error/!{firehose:error-output-type}/!{timestamp:yyyy}/",
        ProcessingConfiguration=_processing(("Lambda", {"LambdaArn": f"{function}:$LATEST"})),
    )
    texts = ("a-shard ", "drop", "fail", "lose", "b")
    records = [{"PartitionKey": text, "Data": text.encode()} for text in texts]
    aws.kinesis.put_records(StreamName=source, Records=records)
    found = wait_for(lambda: found if len(found := objects(aws, bucket)) == 2 else None)
    data, failed = (body for _, body in sorted(found.items()))
    assert data == b"A-SHARD shardId-000000000000B"
    assert f"/processing-failed/{datetime.now(UTC):%Y}/" in "".join(found)
    documents = [json.loads(line) for line in failed.splitlines()]
    failures = {base64.b64decode(d["rawData"]).decode(): d["errorCode"] for d in documents}
    assert failures == {
        "fail": "Lambda.ProcessingFailedStatus",
        "lose": "Lambda.MissingRecordId",
    }
    assert all(document["lambdaArn"].startswith(function) for document in documents)
    assert set(documents[0]) == {
        *("attemptsMade", "arrivalTimestamp", "errorCode", "errorMessage"),
        *("attemptEndingTimestamp", "rawData", "lambdaArn"),
    }


def test_a_batch_that_lambda_refuses_is_kept_whole(
    aws: Aws, bucket: str, make_delivery: Callable[..., str], function: str
) -> None:
    stream = make_delivery(ProcessingConfiguration=_processing(("Lambda", {"LambdaArn": function})))
    _put(aws, stream, "good", "raise", "drop")
    ((name, body),) = wait_for(lambda: objects(aws, bucket)).items()
    assert name.startswith("processing-failed/2")
    documents = [json.loads(line) for line in body.splitlines()]
    assert [base64.b64decode(d["rawData"]) for d in documents] == [b"good", b"raise", b"drop"]
    assert {(d["attemptsMade"], d["errorCode"]) for d in documents} == {(4, "Lambda.FunctionError")}


def test_parquet_by_the_glue_table(
    aws: Aws, bucket: str, make_delivery: Callable[..., str]
) -> None:
    aws.glue.create_database(DatabaseInput={"Name": f"lake-{bucket}"})
    columns = {"uuid": "string", "time_stamp": "timestamp", "n": "bigint", "gone": "boolean"}
    aws.glue.create_table(
        DatabaseName=f"lake-{bucket}",
        TableInput={
            "Name": "landing",
            "StorageDescriptor": {
                "Columns": [{"Name": name, "Type": kind} for name, kind in columns.items()]
            },
            "PartitionKeys": [{"Name": "year", "Type": "string"}],
        },
    )
    stream = make_delivery(
        Prefix="landing/year=!{timestamp:yyyy}/",
        ErrorOutputPrefix="error/!{firehose:error-output-type}/",
        DataFormatConversionConfiguration={
            "SchemaConfiguration": {
                "DatabaseName": f"lake-{bucket}",
                "TableName": "landing",
                "RoleARN": _ROLE,
            },
            "InputFormatConfiguration": {"Deserializer": {"OpenXJsonSerDe": {}}},
            "OutputFormatConfiguration": {"Serializer": {"ParquetSerDe": {}}},
        },
    )
    row = {"UUID": "u1", "time_stamp": "2026-01-02 03:04:05.678", "n": 2**60, "gone": None}
    wrong = {"uuid": "u3", "n": "many"}
    _put(aws, stream, json.dumps(row), '{"uuid":"u2","more":1}', json.dumps(wrong), "[1]", "{")
    found = wait_for(lambda: found if len(found := objects(aws, bucket)) == 2 else None)
    failed, parquet = (body for _, body in sorted(found.items()))
    assert re.search(r"landing/year=\d{4}/.*\.parquet$", max(found))
    file = pq.ParquetFile(io.BytesIO(parquet))
    assert file.schema.column(1).physical_type == "INT96"
    moment = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC).replace(tzinfo=None)
    assert file.read().to_pylist() == [
        {"uuid": "u1", "time_stamp": moment, "n": 2**60, "gone": None},
        {"uuid": "u2", "time_stamp": None, "n": None, "gone": None},
    ]
    documents = [json.loads(line) for line in failed.splitlines()]
    failures = [(base64.b64decode(d["rawData"]).decode(), d["lastErrorCode"]) for d in documents]
    assert failures == [
        (json.dumps(wrong), "DataFormatConversion.MalformedData"),
        ("[1]", "DataFormatConversion.MalformedData"),
        ("{", "DataFormatConversion.ParseError"),
    ]
    assert documents[0]["dataCatalogTable"]["tableName"] == "landing"


def test_deliveries_wait_for_a_bucket(aws: Aws, make_delivery: Callable[..., str]) -> None:
    late = f"late-{next(_numbers)}"
    stream = make_delivery(BucketARN=f"arn:aws:s3:::{late}")
    _put(aws, stream, "patience")
    aws.firehose.describe_delivery_stream(DeliveryStreamName=stream)
    aws.s3.create_bucket(Bucket=late)
    assert list(wait_for(lambda: objects(aws, late)).values()) == [b"patience"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"Prefix": _DAY}, "ErrorOutputPrefix cannot be null"),
        ({"ErrorOutputPrefix": _DAY}, "at least one instance of"),
        ({"CompressionFormat": "ZIP"}, "the sandbox compresses"),
        ({"DynamicPartitioningConfiguration": {"Enabled": True}}, "no dynamic partitioning"),
        ({"ProcessingConfiguration": _processing(("Decompression", {}))}, "no processors"),
    ],
)
def test_what_is_refused(make_delivery: Callable[..., str], config: Any, message: str) -> None:
    with pytest.raises(ClientError, match=message):
        make_delivery(**config)


def test_a_table_made_by_cloudformation_streams_recovers_and_expires(aws: Aws) -> None:
    def template(**more: Any) -> str:
        properties = {
            "TableName": "stacked",
            "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}],
            "AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}],
            "BillingMode": "PAY_PER_REQUEST",
            **more,
        }
        stream = {"Type": "AWS::Kinesis::Stream", "Properties": {"Name": "stacked-changes"}}
        table = {"Type": "AWS::DynamoDB::Table", "Properties": properties}
        return json.dumps({"Resources": {"Stream": stream, "Table": table}})

    def wanted(state: str) -> None:
        aws.cloudformation.get_waiter(f"stack_{state}_complete").wait(
            StackName="stacked", WaiterConfig={"Delay": 0.1, "MaxAttempts": 100}
        )

    more = {
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
        "TimeToLiveSpecification": {"AttributeName": "gone", "Enabled": True},
        "KinesisStreamSpecification": {
            "StreamArn": {"Fn::GetAtt": ["Stream", "Arn"]},
            "ApproximateCreationDateTimePrecision": "MICROSECOND",
        },
    }
    aws.cloudformation.create_stack(StackName="stacked", TemplateBody=template(**more))
    wanted("create")
    (destination,) = aws.dynamodb.describe_kinesis_streaming_destination(TableName="stacked")[
        "KinesisDataStreamDestinations"
    ]
    assert destination["StreamArn"].endswith("/stacked-changes")
    assert destination["ApproximateCreationDateTimePrecision"] == "MICROSECOND"
    aws.dynamodb.put_item(TableName="stacked", Item={"pk": {"S": "a"}, "gone": {"N": "1"}})
    assert _recovery(aws) == "ENABLED"
    ttl = aws.dynamodb.describe_time_to_live(TableName="stacked")["TimeToLiveDescription"]
    assert ttl == {"TimeToLiveStatus": "ENABLED", "AttributeName": "gone"}
    del more["PointInTimeRecoverySpecification"], more["KinesisStreamSpecification"]
    aws.cloudformation.update_stack(StackName="stacked", TemplateBody=template(**more))
    wanted("update")
    assert _recovery(aws) == "DISABLED"
    (destination,) = aws.dynamodb.describe_kinesis_streaming_destination(TableName="stacked")[
        "KinesisDataStreamDestinations"
    ]
    assert destination["DestinationStatus"] == "DISABLED"
    assert "Item" in aws.dynamodb.get_item(TableName="stacked", Key={"pk": {"S": "a"}})
    aws.cloudformation.delete_stack(StackName="stacked")
    wanted("delete")
    assert "stacked" not in aws.dynamodb.list_tables()["TableNames"]


def _recovery(aws: Aws) -> str:
    backups = aws.dynamodb.describe_continuous_backups(TableName="stacked")
    recovery = backups["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
    return recovery["PointInTimeRecoveryStatus"]
