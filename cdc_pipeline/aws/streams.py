"""DynamoDB Streams: shard listings and pages of records as they came over the wire.

GetRecords answers are not parsed by botocore. It turns a thousand records into a million Python
objects, and it takes an answer that was cut short for an empty one (content length is not
enforced for this service), which would read as "shard finished". Signing, credentials, endpoints
and retries stay botocore's: only the parser of this one answer is exchanged.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserFactory

from cdc_pipeline.aws.session import AwsSession, aws_errors, error_code
from cdc_pipeline.core.errors import (
    ExpiredIteratorError,
    ShardGoneError,
    SourceError,
    TrimmedDataError,
)
from cdc_pipeline.core.lineage import Shard

_ATTEMPTS = 5


@dataclass(frozen=True)
class StreamDescription:
    """A stream and all its shards. `status`: ENABLING, ENABLED, DISABLING or DISABLED."""

    arn: str
    status: str
    view_type: str
    shards: list[Shard]


@dataclass(frozen=True)
class Page:
    """One GetRecords answer: each record's JSON, and where to go on (None: the shard has ended)."""

    records: list[msgspec.Raw]
    next_iterator: str | None
    size: int


class _Answer(msgspec.Struct):
    # Records has no default: an answer without it is a failed one, not an empty one.
    Records: list[msgspec.Raw]
    NextShardIterator: str | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class DynamoDBStreams:
    """A reader of one account's streams. Safe to use from several threads."""

    def __init__(self, aws: AwsSession) -> None:
        _exchange_parser(aws)
        self._client = aws.client("dynamodbstreams")

    def describe(self, arn: str) -> StreamDescription:
        """DescribeStream, all pages; raises `ShardGoneError` when the stream no longer exists."""
        shards: list[Shard] = []
        start: dict[str, str] = {}
        while True:
            try:
                with aws_errors(f"stream {arn}"):
                    answer = self._client.describe_stream(StreamArn=arn, **start)
            except SourceError as error:
                if _code_behind(error) == "ResourceNotFoundException":
                    raise ShardGoneError(f"stream {arn} no longer exists") from error
                raise
            found = answer["StreamDescription"]
            shards += map(_shard, found["Shards"])
            last = found.get("LastEvaluatedShardId")
            if not last:
                return StreamDescription(
                    arn, found["StreamStatus"], found["StreamViewType"], shards
                )
            start = {"ExclusiveStartShardId": last}

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """An iterator behind sequence number `after`, or at the shard's oldest record if None."""
        place: dict[str, str] = (
            {"ShardIteratorType": "TRIM_HORIZON"}
            if after is None
            else {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": after}
        )
        return self._call(
            "get_shard_iterator", f"shard {shard_id}", StreamArn=arn, ShardId=shard_id, **place
        )["ShardIterator"]

    def read(self, iterator: str) -> Page:
        """One page of records; an answer that was cut short is asked for again.

        Raises `ExpiredIteratorError`, `TrimmedDataError`, `ShardGoneError`, `SourceError`.
        """
        for _ in range(_ATTEMPTS):
            answer = self._call("get_records", "records of a shard", ShardIterator=iterator)
            body, expected = answer["Body"], answer["ContentLength"]
            if expected is not None and expected != len(body):
                continue
            try:
                parsed = _decode_answer(body)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            return Page(parsed.Records, parsed.NextShardIterator, len(body))
        raise SourceError(f"GetRecords was cut short {_ATTEMPTS} times in a row")

    def _call(self, operation: str, what: str, **arguments: Any) -> Any:
        try:
            with aws_errors(what):
                return getattr(self._client, operation)(**arguments)
        except SourceError as error:
            special = _SPECIAL.get(_code_behind(error))
            if special is not None:
                raise special(error.message) from error
            raise


_SPECIAL: dict[str, type[Exception]] = {
    "ExpiredIteratorException": ExpiredIteratorError,
    "TrimmedDataAccessException": TrimmedDataError,
    "ResourceNotFoundException": ShardGoneError,
}


def _code_behind(error: SourceError) -> str:
    cause = error.__cause__
    return error_code(cause) if isinstance(cause, ClientError) else ""


def _shard(raw: dict[str, Any]) -> Shard:
    numbers = raw.get("SequenceNumberRange", {})
    return Shard(
        shard_id=raw["ShardId"],
        parent_id=raw.get("ParentShardId"),
        starting=numbers.get("StartingSequenceNumber"),
        ending=numbers.get("EndingSequenceNumber"),
    )


class _RawRecordsParser:
    """botocore's parser, but for a successful GetRecords answer, which is handed on as bytes."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser

    def parse(self, response: dict[str, Any], shape: Any) -> Any:
        if shape is None or shape.name != "GetRecordsOutput" or response["status_code"] != 200:
            return self._parser.parse(response, shape)
        length = response["headers"].get("content-length")
        return {
            "Body": response["body"],
            "ContentLength": int(length) if length else None,
            "ResponseMetadata": {"HTTPStatusCode": 200, "HTTPHeaders": response["headers"]},
        }


class _RawRecordsFactory(ResponseParserFactory):
    def create_parser(self, protocol_name: str) -> Any:
        return _RawRecordsParser(super().create_parser(protocol_name))


def _exchange_parser(aws: AwsSession) -> None:
    aws.session._session.register_component("response_parser_factory", _RawRecordsFactory())
