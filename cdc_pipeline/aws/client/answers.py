"""Answers of DynamoDB that were damaged on their way are asked for again, then refused.

DynamoDB sends a CRC-32 of each body. botocore 1.43 in standard retry mode tries a wrong one of
`dynamodb` again and then hands it out as if it were right (its legacy mode raises `ChecksumError`);
of `dynamodbstreams` it looks at none.
"""

import random
import zlib
from typing import Any

from botocore.exceptions import ChecksumError

_HEADER = "x-amz-crc32"
_ATTEMPTS = 6  # as of `AwsSession`'s clients: the first, and five retries
_RETRIED = "dynamodb-streams"
_SERVICES = ("dynamodb", _RETRIED)
"""As botocore's events name them."""


def check_answers(session: Any) -> None:
    """Let the clients of a botocore session raise `ChecksumError` for answers that stay wrong."""
    for service in _SERVICES:
        session.register(f"after-call.{service}", _require_right)
    session.register(f"needs-retry.{_RETRIED}", _retry)


def _wrong(http: Any) -> tuple[int, int] | None:
    """The CRC-32 that was announced and the one that it is, where they differ."""
    announced = http.headers.get(_HEADER)
    if announced is None:
        return None
    found = zlib.crc32(http.content)
    return (int(announced), found) if int(announced) != found else None


def _require_right(http_response: Any, **_: Any) -> None:
    if wrong := _wrong(http_response):
        raise ChecksumError(
            checksum_type="crc32", expected_checksum=wrong[0], actual_checksum=wrong[1]
        )


def _retry(response: Any, attempts: int, **_: Any) -> float | None:
    """Seconds until the next attempt, None for none."""
    if response is None or attempts >= _ATTEMPTS or not _wrong(response[0]):
        return None
    return random.random() * 0.05 * 2**attempts
