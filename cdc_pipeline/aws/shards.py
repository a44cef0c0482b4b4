"""Common parts of DynamoDB Streams and Kinesis: shards, and pages of records as bytes.

botocore does not parse GetRecords answers here. It turns a thousand records into a million Python
objects, and it accepts a truncated or empty body as an answer without records and without a next
iterator, which would mean "shard finished". Signing, credentials, endpoints and retries stay
botocore's: only the parser of this one answer is replaced. Both services use the same name and JSON
format for it.
"""

import random
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from botocore.parsers import ResponseParserFactory

from cdc_pipeline.aws.client.session import AwsSession, aws_errors, cause_code
from cdc_pipeline.core.errors import (
    ExpiredIteratorError,
    ShardGoneError,
    SourceError,
    TrimmedDataError,
)
from cdc_pipeline.core.log.lineage import Shard

_ATTEMPTS = 5
_RETRY_SECONDS = 0.05
_PAGE = "Page"


@dataclass(frozen=True)
class StreamDescription:
    """A stream and all its shards. `status`: ENABLING, ENABLED, DISABLING or DISABLED.

    `created_us`: distinguishes streams of one ARN, 0 if ARNs are unique. `began_us`: its creation
    time by AWS's clock, 0: unknown.
    """

    arn: str
    status: str
    view_type: str
    shards: list[Shard]
    retention_hours: int = 24
    created_us: int = 0
    began_us: int = 0


@dataclass(frozen=True)
class Page:
    """One GetRecords answer: each record's JSON, and the next iterator (None: the shard has ended).

    `behind_ms`: distance of the page's end from the shard's tip, if AWS reports it.
    """

    records: list[msgspec.Raw]
    next_iterator: str | None
    size: int
    behind_ms: int | None = None


class _Answer(msgspec.Struct):
    # Records has no default: an answer without it is a failure, not an empty page.
    Records: list[msgspec.Raw]
    NextShardIterator: str | None = None
    MillisBehindLatest: int | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class ShardClient:
    """Read-only calls of one service, repeated until the answer is complete."""

    service: ClassVar[str]

    def __init__(self, aws: AwsSession) -> None:
        self._client = client_of(aws, self.service)

    def read(self, iterator: str) -> Page:
        """Read one page of records; a truncated answer is requested again.

        Raises `ExpiredIteratorError`, `TrimmedDataError`, `ShardGoneError`, `SourceError`.
        """
        what = "records of a shard"
        return self._call("get_records", what, _PAGE, ShardIterator=iterator)[_PAGE]

    def _call(self, operation: str, what: str, wanted: str, **arguments: Any) -> Any:
        """Call until the answer has its part `wanted`; truncated answers and errors are repeated.

        botocore retries throttling, 5xx and broken connections.
        """
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_RETRY_SECONDS * 2**attempt * random.random())
            try:
                with aws_errors(what):
                    answer = getattr(self._client, operation)(**arguments)
            except SourceError as error:
                code = cause_code(error)
                # An error with an unparsable body has the HTTP status as its code in botocore.
                is_transient = code.isdigit() or code in _TRANSIENT
                if is_transient and attempt < _ATTEMPTS - 1:
                    continue
                special = _SPECIAL.get(code)
                if special is not None:
                    raise special(error.message) from error
                raise
            if wanted in answer:
                return answer
        raise SourceError(f"{what}: {operation} was cut short {_ATTEMPTS} times in a row")


_TRANSIENT = {"KMSThrottlingException"}
_SPECIAL: dict[str, type[Exception]] = {
    "ExpiredIteratorException": ExpiredIteratorError,
    "TrimmedDataAccessException": TrimmedDataError,
    "ResourceNotFoundException": ShardGoneError,
}


class _RawRecordsParser:
    """botocore's parser, except for a successful GetRecords answer, which stays bytes."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser

    def parse(self, response: dict[str, Any], shape: Any) -> Any:
        if shape is None or shape.name != "GetRecordsOutput" or response["status_code"] != 200:
            return self._parser.parse(response, shape)
        metadata = {"HTTPStatusCode": 200, "HTTPHeaders": response["headers"]}
        page = parse_page(response["body"], response["headers"].get("content-length"))
        return {"ResponseMetadata": metadata, **({_PAGE: page} if page else {})}


def parse_page(body: bytes, length: str | None) -> Page | None:
    """Parse a GetRecords answer; None: truncated. `length`: the Content-Length header."""
    if length and int(length) != len(body):
        return None
    try:
        parsed = _decode_answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Page(parsed.Records, parsed.NextShardIterator, len(body), parsed.MillisBehindLatest)


class _RawRecordsFactory(ResponseParserFactory):
    def create_parser(self, protocol_name: str) -> Any:
        return _RawRecordsParser(super().create_parser(protocol_name))


def client_of(aws: AwsSession, service: str) -> Any:
    """Return the session's client of a service with GetRecords.

    A session keeps its clients, and the parser for GetRecords must be registered before the first:
    so every caller of such a service, for any operation, must use this function.
    """
    aws.session.register_component("response_parser_factory", _RawRecordsFactory())
    return aws.client(service)
