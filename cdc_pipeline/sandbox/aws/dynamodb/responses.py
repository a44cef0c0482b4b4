"""Answers in place of the emulator's handlers: JSON, or a refusal with DynamoDB's message."""

from collections.abc import Callable
from typing import Any

Response = tuple[int, dict[str, str], bytes]


class RefusedError(Exception):
    """A request that DynamoDB answers with an error code and a message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def answering(operation: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Response]:
    """Return a handler for the emulator from an operation that returns a dict or refuses."""

    def handler(data: dict[str, Any]) -> Response:
        from ministack.core.responses import error_response_json, json_response

        try:
            return json_response(operation(data))
        except RefusedError as refused:
            return error_response_json(refused.code, str(refused), 400)

    return handler
