"""What DynamoDB Streams and Kinesis have in common: shards, and pages of records as bytes.

GetRecords answers are not parsed by botocore. It turns a thousand records into a million Python
objects, and it takes an answer whose body was cut short, or is empty, for one without records and
without a next iterator, which would read as "shard finished". Signing, credentials, endpoints and
retries stay botocore's: only the parser of this one answer is exchanged. Both services name it
alike and write it as JSON.
"""

import random
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from botocore.parsers import ResponseParserFactory

from cdc_pipeline.aws.client.session import AwsSession, aws_errors, code_behind
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

    `created_us`: tells streams of one ARN apart, 0 where no two ever have the same. `began_us`:
    when it was made, by AWS's clock, 0: unknown.
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
    """One GetRecords answer: each record's JSON, and where to go on (None: the shard has ended).

    `behind_ms`: how much older than the shard's tip the end of the page is, where AWS says it.
    """

    records: list[msgspec.Raw]
    next_iterator: str | None
    size: int
    behind_ms: int | None = None


class _Answer(msgspec.Struct):
    # Records has no default: an answer without it is a failed one, not an empty one.
    Records: list[msgspec.Raw]
    NextShardIterator: str | None = None
    MillisBehindLatest: int | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class ShardClient:
    """Calls of one service without side effects, asked again until the whole answer is there."""

    service: ClassVar[str]

    def __init__(self, aws: AwsSession) -> None:
        self._client = client_of(aws, self.service)

    def read(self, iterator: str) -> Page:
        """One page of records; an answer that was cut short is asked for again.

        Raises `ExpiredIteratorError`, `TrimmedDataError`, `ShardGoneError`, `SourceError`.
        """
        what = "records of a shard"
        return self._call("get_records", what, _PAGE, ShardIterator=iterator)[_PAGE]

    def _call(self, operation: str, what: str, wanted: str, **arguments: Any) -> Any:
        """An answer with its part `wanted`; answers and errors cut short are asked for again.

        botocore retries what it recognises: throttling, 5xx, broken connections.
        """
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_RETRY_SECONDS * 2**attempt * random.random())
            try:
                with aws_errors(what):
                    answer = getattr(self._client, operation)(**arguments)
            except SourceError as error:
                code = code_behind(error)
                # botocore names an error whose body it could not parse after the HTTP status.
                passing = code.isdigit() or code in _PASSING
                if passing and attempt < _ATTEMPTS - 1:
                    continue
                special = _SPECIAL.get(code)
                if special is not None:
                    raise special(error.message) from error
                raise
            if wanted in answer:
                return answer
        raise SourceError(f"{what}: {operation} was cut short {_ATTEMPTS} times in a row")


_PASSING = {"KMSThrottlingException"}
_SPECIAL: dict[str, type[Exception]] = {
    "ExpiredIteratorException": ExpiredIteratorError,
    "TrimmedDataAccessException": TrimmedDataError,
    "ResourceNotFoundException": ShardGoneError,
}


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
    return Page(parsed.Records, parsed.NextShardIterator, len(body), parsed.MillisBehindLatest)


class _RawRecordsFactory(ResponseParserFactory):
    def create_parser(self, protocol_name: str) -> Any:
        return _RawRecordsParser(super().create_parser(protocol_name))


def client_of(aws: AwsSession, service: str) -> Any:
    """The session's client of a service whose records are read.

    A session keeps its clients, and the parser that GetRecords needs must be there before the
    first: whoever calls such a service, for whatever, takes the client from here.
    """
    aws.session._session.register_component("response_parser_factory", _RawRecordsFactory())
    return aws.client(service)
