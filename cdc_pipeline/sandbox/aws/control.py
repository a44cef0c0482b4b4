"""Control of a running sandbox by tests, over HTTP: clock, failing exports, formats."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from cdc_pipeline.sandbox.aws.dynamodb.journal import Clock
from cdc_pipeline.sandbox.errors import SandboxError

PATH = "/_sandbox/control"


def control(endpoint_url: str, **commands: object) -> dict[str, Any]:
    """Send commands to the sandbox at `endpoint_url` and return its answer; none: only ask.

    stand_at: epoch µs, later than the sandbox's present: its clock stops there. The next write is
    at exactly this time, each further one 1 µs later. All of DynamoDB follows it: time to live,
    stream records and their trimming, recovery and exports.
    fail_exports: number of the next exports to FAIL, with `failure_code` and `failure_message`.
    write_time: `typed`, `number` or `string`, the format of WriteTimestampMicros in the next
    exports. channel_delimiter: written by Kinesis channels after each record (default: nothing).
    channel_dead_letters: number of the next channel records to become dead letters.
    job_minute_seconds: a minute of executionTimeoutMinutes of the next job runs of EMR Serverless.

    The answer: `now_micros` and the remaining `fail_exports`. Raises SandboxError for any error.
    """
    request = urllib.request.Request(
        endpoint_url.rstrip("/") + PATH, json.dumps(commands).encode(), method="PUT"
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=10) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            raise SandboxError(f"the sandbox refused {commands}: {error.read().decode()}") from None


class SandboxClock:
    """Replacement of the module `time` in the emulator's DynamoDB: one clock for all of it."""

    def __init__(self, real_time: Any, clock: Clock) -> None:
        self._real_time = real_time
        self._clock = clock

    def time(self) -> float:
        """Return the sandbox's current time in epoch seconds."""
        return self._clock.now() / 1_000_000

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else, such as `sleep`, to the real module."""
        return getattr(self._real_time, name)


class Control:
    """The sandbox's side of `control`. `handlers`: function by name of a command."""

    def __init__(
        self, handlers: dict[str, Callable[[Any], None]], state: Callable[[], Any]
    ) -> None:
        self._handlers = handlers
        self._state = state

    async def respond(self, receive: Any, send: Any) -> None:
        """Answer one ASGI request."""
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            self._carry_out(json.loads(body or b"{}"))
            status, answer = 200, json.dumps(self._state())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            status, answer = 400, f"{type(error).__name__}: {error}"
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": answer.encode()})

    def _carry_out(self, commands: dict[str, Any]) -> None:
        unknown = commands.keys() - self._handlers.keys()
        if unknown:
            raise ValueError(f"unknown: {sorted(unknown)}; known: {sorted(self._handlers)}")
        for name, value in commands.items():
            self._handlers[name](value)
