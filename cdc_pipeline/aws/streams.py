"""DynamoDB Streams: shard listings and pages of records as they came over the wire.

GetRecords answers are not parsed by botocore. It turns a thousand records into a million Python
objects, and it takes an answer whose body was cut short, or is empty, for one without records and
without a next iterator, which would read as "shard finished". Signing, credentials, endpoints and
retries stay botocore's: only the parser of this one answer is exchanged.
"""

import random
import time
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
_RETRY_SECONDS = 0.05
_PAGE = "Page"


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
            found = self._call(
                "describe_stream", f"stream {arn}", "StreamDescription", StreamArn=arn, **start
            )
            shards += map(_shard, found.get("Shards", ()))
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
            "get_shard_iterator",
            f"shard {shard_id}",
            "ShardIterator",
            StreamArn=arn,
            ShardId=shard_id,
            **place,
        )

    def read(self, iterator: str) -> Page:
        """One page of records; an answer that was cut short is asked for again.

        Raises `ExpiredIteratorError`, `TrimmedDataError`, `ShardGoneError`, `SourceError`.
        """
        return self._call("get_records", "records of a shard", _PAGE, ShardIterator=iterator)

    def _call(self, operation: str, what: str, wanted: str, **arguments: Any) -> Any:
        """One part of an answer; asks again for answers and errors that were cut short.

        None of these calls has side effects. botocore retries what it recognises: throttling, 5xx,
        broken connections.
        """
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_RETRY_SECONDS * 2**attempt * random.random())
            try:
                with aws_errors(what):
                    answer = getattr(self._client, operation)(**arguments)
            except SourceError as error:
                code = _code_behind(error)
                # botocore names an error whose body it could not parse after the HTTP status.
                if code.isdigit() and attempt < _ATTEMPTS - 1:
                    continue
                special = _SPECIAL.get(code)
                if special is not None:
                    raise special(error.message) from error
                raise
            if wanted in answer:
                return answer[wanted]
        raise SourceError(f"{what}: {operation} was cut short {_ATTEMPTS} times in a row")


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
        metadata = {"HTTPStatusCode": 200, "HTTPHeaders": response["headers"]}
        page = parse_page(response["body"], response["headers"].get("content-length"))
        return {"ResponseMetadata": metadata, **({_PAGE: page} if page else {})}


def parse_page(body: bytes, length: str | None) -> Page | None:
    """A whole GetRecords answer, None for one that was cut short (`length`: Content-Length)."""
    if length and int(length) != len(body):
        return None
    try:
        parsed = _decode_answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Page(parsed.Records, parsed.NextShardIterator, len(body))


class _RawRecordsFactory(ResponseParserFactory):
    def create_parser(self, protocol_name: str) -> Any:
        return _RawRecordsParser(super().create_parser(protocol_name))


def _exchange_parser(aws: AwsSession) -> None:
    aws.session._session.register_component("response_parser_factory", _RawRecordsFactory())
