"""Orders that tests give a running sandbox over HTTP: its clock, exports that fail, spellings."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from cdc_pipeline.sandbox.aws.dynamodb.journal import Clock
from cdc_pipeline.sandbox.errors import SandboxError

PATH = "/_sandbox/control"


def control(endpoint_url: str, **orders: object) -> dict[str, Any]:
    """Give orders to the sandbox at `endpoint_url`; return what it answers. No orders: just ask.

    stand_at: a time in epoch µs, later than the sandbox's present: its clock stands there from now
    on. The next write happens at that very time, each further one 1 µs later. DynamoDB follows it
    altogether: time to live, stream records and their trimming, recovery and exports.
    fail_exports: how many of the exports requested next will FAIL, with `failure_code` and
    `failure_message`. write_time: `typed`, `number` or `string`, the spelling of
    WriteTimestampMicros in exports requested from now on. channel_delimiter: what Kinesis channels
    write behind each record (default: nothing). channel_dead_letters: how many of the next records
    of channels are given up as dead letters.

    The answer: `now_micros` and `fail_exports` left. Raises SandboxError for anything else.
    """
    request = urllib.request.Request(
        endpoint_url.rstrip("/") + PATH, json.dumps(orders).encode(), method="PUT"
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=10) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            raise SandboxError(f"the sandbox refused {orders}: {error.read().decode()}") from None


class SandboxClock:
    """Stands in for the module `time` in the emulator's DynamoDB, so that all of it agrees."""

    def __init__(self, real_time: Any, clock: Clock) -> None:
        self._real_time = real_time
        self._clock = clock

    def time(self) -> float:
        """Return the sandbox's present in epoch seconds."""
        return self._clock.now() / 1_000_000

    def __getattr__(self, name: str) -> Any:
        """Leave everything else, such as sleeping, to the real module."""
        return getattr(self._real_time, name)


class Control:
    """The sandbox's side of `control`: `orders` maps a name to what carries it out."""

    def __init__(self, orders: dict[str, Callable[[Any], None]], state: Callable[[], Any]) -> None:
        self._orders = orders
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

    def _carry_out(self, orders: dict[str, Any]) -> None:
        unknown = orders.keys() - self._orders.keys()
        if unknown:
            raise ValueError(f"unknown: {sorted(unknown)}; known: {sorted(self._orders)}")
        for name, value in orders.items():
            self._orders[name](value)
