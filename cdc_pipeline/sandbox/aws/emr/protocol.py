"""REST-JSON of EMR Serverless: routes, answers, refusals, pages.

Source: botocore's model emr-serverless 2021-07-13.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

Operation = Callable[[dict[str, Any]], dict[str, Any]]
Response = tuple[int, dict[str, str], bytes]
Handler = Callable[[str, str, Any, bytes, dict[str, list[str]]], Awaitable[Response]]

VALIDATION = "ValidationException"
_STATUS = {
    VALIDATION: 400,
    "ResourceNotFoundException": 404,
    "ConflictException": 409,
    "UnknownOperationException": 404,
}
_PAGE = 50
"""Most entries of a page, and their number without `maxResults`."""


class RefusedError(Exception):
    """A request that EMR Serverless answers with an error code of its model and a message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def handler_of(routes: Iterable[tuple[str, str, Operation]]) -> Handler:
    """Return a handler for the emulator of (method, path with names in braces, operation).

    An operation takes body, path and query in one dict; `states` is a list, other values of the
    query are text.
    """
    patterns = [
        (method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), operation)
        for method, path, operation in routes
    ]

    async def handle(
        method: str, path: str, headers: Any, body: bytes, query: dict[str, list[str]]
    ) -> Response:
        try:
            for own_method, pattern, operation in patterns:
                match = pattern.fullmatch(path)
                if match and own_method == method:
                    return _answer(200, operation(_request(match, body, query)))
            raise RefusedError("UnknownOperationException", f"the sandbox has no {method} {path}")
        except RefusedError as refused:
            error = {"__type": refused.code, "message": str(refused)}
            return _answer(_STATUS[refused.code], error, {"x-amzn-errortype": refused.code})

    return handle


def _request(match: re.Match[str], body: bytes, query: dict[str, list[str]]) -> dict[str, Any]:
    values = {name: v if name == "states" else v[0] for name, v in query.items()}
    return {**json.loads(body or b"{}"), **values, **match.groupdict()}


def _answer(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    kind = {"Content-Type": "application/json"}
    return status, {**kind, **(headers or {})}, json.dumps(body).encode()


def page(name: str, entries: Sequence[dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """Return the page of `entries` that a request's `nextToken` and `maxResults` ask for."""
    size, token = int(request.get("maxResults", _PAGE)), request.get("nextToken", "0")
    if not 1 <= size <= _PAGE:
        raise RefusedError(VALIDATION, f"maxResults must be from 1 to {_PAGE}")
    if not token.isdecimal():
        raise RefusedError(VALIDATION, "nextToken is not valid")
    start = int(token)
    answer: dict[str, Any] = {name: list(entries[start : start + size])}
    if start + size < len(entries):
        answer["nextToken"] = str(start + size)
    return answer
