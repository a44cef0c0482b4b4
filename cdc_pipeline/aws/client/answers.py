"""Checksums of DynamoDB's answers: damaged ones are requested again, then refused.

DynamoDB sends a CRC-32 of each body. botocore 1.43 in standard retry mode retries a wrong one of
`dynamodb`, and finally returns it as if it were right (its legacy mode raises `ChecksumError`); it
does not check those of `dynamodbstreams`.
"""

import random
import zlib
from typing import Any

from botocore.exceptions import ChecksumError

_HEADER = "x-amz-crc32"
_ATTEMPTS = 6  # as in `AwsSession`'s clients: the first, and five retries
_RETRIED = "dynamodb-streams"
_SERVICES = ("dynamodb", _RETRIED)
"""Names of the services in botocore's events."""


def check_answers(session: Any) -> None:
    """Make the clients of a botocore session raise `ChecksumError` for lastingly wrong answers."""
    for service in _SERVICES:
        session.register(f"after-call.{service}", _require_match)
    session.register(f"needs-retry.{_RETRIED}", _retry)


def _mismatch(http: Any) -> tuple[int, int] | None:
    """Return the announced and the actual CRC-32 if they differ."""
    announced = http.headers.get(_HEADER)
    if announced is None:
        return None
    actual = zlib.crc32(http.content)
    return (int(announced), actual) if int(announced) != actual else None


def _require_match(http_response: Any, **_: Any) -> None:
    if mismatch := _mismatch(http_response):
        raise ChecksumError(
            checksum_type="crc32", expected_checksum=mismatch[0], actual_checksum=mismatch[1]
        )


def _retry(response: Any, attempts: int, **_: Any) -> float | None:
    """Return seconds until the next attempt; None: no further attempt."""
    if response is None or attempts >= _ATTEMPTS or not _mismatch(response[0]):
        return None
    return random.random() * 0.05 * 2**attempts
