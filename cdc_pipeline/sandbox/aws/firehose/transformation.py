"""Transformation of records by Lambda, as Firehose calls it.

Reference of AWS: "Data transformation".
"""

import base64
import json
import uuid
from typing import Any

from cdc_pipeline.sandbox.aws.firehose.records import Failure, Record, with_data
from cdc_pipeline.sandbox.aws.firehose.stream_settings import parameter_of

_MB = 1024 * 1024
# Limit of an answer; Lambda itself refuses to return more.
_LARGEST_ANSWER = 6 * _MB
_UNSUCCESSFUL = ("Lambda.ProcessingFailedStatus", "ProcessingFailed status set for record")
_MISSING = (
    "Lambda.MissingRecordId",
    "One or more record Ids were not returned. Ensure that the Lambda function returns all "
    "received record Ids.",
)


def transform_by_lambda(
    stream: dict[str, Any], processor: dict[str, Any], batch: list[Record]
) -> tuple[list[Record], list[Failure]]:
    """Pass one batch to Lambda; return its output and the records it failed on."""
    arn = parameter_of(processor, "LambdaArn", "")
    tries = 1 + int(parameter_of(processor, "NumberOfRetries", 3))
    answers: dict[str, Any] = {}
    code = message = ""
    for _ in range(tries):
        answers, code, message = _invoke(stream, arn, batch)
        if not code:
            break
    good: list[Record] = []
    failed: list[Failure] = []
    for record in batch:
        answer = answers.get(record.record_id) or {}
        result = answer.get("result")
        if result == "Ok":
            good.append(with_data(record, base64.b64decode(answer["data"])))
        elif result != "Dropped":
            default = _UNSUCCESSFUL if result == "ProcessingFailed" else _MISSING
            details = {
                "attemptsMade": tries if code else 1,
                "errorCode": code or default[0],
                "errorMessage": message or default[1],
                "lambdaArn": arn,
            }
            failed.append(Failure(record, details))
    return good, failed


def lambda_bytes(processor: dict[str, Any]) -> int:
    """Return the limit of a batch that is passed to Lambda."""
    return int(float(parameter_of(processor, "BufferSizeInMBs", 1)) * _MB)


def _invoke(
    stream: dict[str, Any], arn: str, batch: list[Record]
) -> tuple[dict[str, Any], str, str]:
    """Return the answer to each record id, or an error's code and message."""
    from ministack.core.responses import get_region
    from ministack.services import lambda_svc

    source = stream.get("kinesis_source")
    event = {
        "invocationId": str(uuid.uuid4()),
        **({"sourceKinesisStreamArn": source["KinesisStreamARN"]} if source else {}),
        "deliveryStreamArn": stream["arn"],
        "region": get_region(),
        "records": [_lambda_record(record) for record in batch],
    }
    function, _ = lambda_svc._get_func_record_for_qualifier(
        *lambda_svc._resolve_name_and_qualifier(arn)
    )
    if function is None:
        return {}, "Lambda.ResourceNotFound", f"The Lambda function was not found: {arn}"
    result = lambda_svc._execute_function(function, event)
    body = result.get("body")
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    if result.get("error") or len(text) > _LARGEST_ANSWER:
        return {}, "Lambda.FunctionError", "The Lambda function returned an error result."
    try:
        answers = json.loads(text)["records"]
        return {answer["recordId"]: answer for answer in answers}, "", ""
    except (KeyError, TypeError, ValueError):
        return {}, "Lambda.JsonProcessingException", "The Lambda function's answer has no records."


def _lambda_record(record: Record) -> dict[str, Any]:
    return {
        "recordId": record.record_id,
        "approximateArrivalTimestamp": record.arrived_ms,
        "data": base64.b64encode(record.data).decode(),
        **({"kinesisRecordMetadata": record.metadata} if record.metadata else {}),
    }
