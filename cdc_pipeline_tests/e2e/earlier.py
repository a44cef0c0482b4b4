"""A sandbox at an earlier time, with tables that it did not make itself; run as a module."""

import sys
import time
from typing import Any

from cdc_pipeline.sandbox import __main__ as sandbox
from cdc_pipeline.sandbox.aws import server
from cdc_pipeline.sandbox.aws.dynamodb import journal
from cdc_pipeline.sandbox.process import SandboxProcess


class EarlierSandbox(SandboxProcess):
    """`control` takes two more orders.

    behind: how many µs the clock is behind the real one; given before anything is written. Like
    `stand_at` it moves DynamoDB; S3 and `Date` headers show the real time.
    adopt: makes a table that another one was: `account`, `name`, its `attributes` (such as its id
    and stream), and the `records` of that stream.
    """

    module = "cdc_pipeline_tests.e2e.earlier"


class _Earlier(server._Sandbox):
    """The server's side of it."""

    def _command_handlers(self) -> dict[str, Any]:
        return super()._command_handlers() | {"behind": self._set_behind, "adopt": self._adopt}

    def _set_behind(self, micros: int) -> None:
        class Behind:
            @staticmethod
            def time_ns() -> int:
                return time.time_ns() - micros * 1000

        journal.time = Behind  # type: ignore[assignment]
        self._clock._last = 0  # it ticked once when it was made

    def _adopt(self, table: dict[str, Any]) -> None:
        from ministack.core.responses import request_scope

        dynamodb = self._emulator.dynamodb
        with request_scope(table["account"], "us-east-1"):
            dynamodb._tables[table["name"]].update(table["attributes"])
            dynamodb._stream_records[table["name"]] = table["records"]


if __name__ == "__main__":
    server._Sandbox = _Earlier  # type: ignore[misc]
    sys.exit(sandbox.main())
