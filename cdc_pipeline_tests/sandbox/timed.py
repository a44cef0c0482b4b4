"""A sandbox whose clock stands where the test puts it, and tables written at known times."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.sandbox.aws.exports.exporting import finished
from cdc_pipeline_tests.sandbox.clients import Aws, connect, wait_for

_SECOND = 1_000_000
_numbers = itertools.count(1)


@contextmanager
def timed_sandbox() -> Iterator[Aws]:
    """Clients of a sandbox with AWS's limits and no delays, whose clock stands."""
    with SandboxProcess(
        ttl_interval_seconds=0.02, exports=ExportOptions(delay_seconds=0)
    ) as process:
        aws = connect(process.endpoint_url)
        tomorrow = (int(time.time()) // 86_400 + 1) * 86_400
        control(aws.endpoint_url, stand_at=tomorrow * _SECOND)
        yield aws


class TimedTable:
    """A table with recovery, whose every write happens at a time of its own that is returned.

    Times are epoch µs. `enabled` is when recovery was turned on, at a whole second.
    """

    def __init__(
        self, aws: Aws, *, sort_key: bool = True, name: str | None = None, wait: bool = False
    ) -> None:
        self._aws = aws
        self.name = name or f"timed-{next(_numbers)}"
        schema = [{"AttributeName": "pk", "KeyType": "HASH"}]
        types = [{"AttributeName": "pk", "AttributeType": "S"}]
        if sort_key:
            schema.append({"AttributeName": "sk", "KeyType": "RANGE"})
            types.append({"AttributeName": "sk", "AttributeType": "N"})
        created = aws.dynamodb.create_table(
            TableName=self.name,
            KeySchema=schema,
            AttributeDefinitions=types,
            BillingMode="PAY_PER_REQUEST",
        )["TableDescription"]
        self.arn, self.id = created["TableArn"], created["TableId"]
        aws.dynamodb.update_time_to_live(
            TableName=self.name,
            TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires"},
        )
        self.enabled = 0 if wait else self.go(seconds=60)
        self.recovery(on=True)

    def recovery(self, *, on: bool) -> None:
        self._aws.dynamodb.update_continuous_backups(
            TableName=self.name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": on}
        )

    def now(self) -> int:
        return control(self._aws.endpoint_url)["now_micros"]

    def stand_at(self, micros: int) -> int:
        control(self._aws.endpoint_url, stand_at=micros)
        return micros

    def go(self, *, seconds: int, micros: int = 0) -> int:
        """Go to a whole second at least `seconds` from now, and `micros` more."""
        whole = -(-self.now() // _SECOND) + seconds
        return self.stand_at(whole * _SECOND + micros)

    def put(self, item: dict[str, Any], *, at: int | None = None) -> int:
        at = self._go_on(at)
        self._aws.dynamodb.put_item(TableName=self.name, Item=item)
        return at

    def update(
        self, key: dict[str, Any], name: str, value: dict[str, Any], *, at: int | None = None
    ) -> int:
        at = self._go_on(at)
        self._aws.dynamodb.update_item(
            TableName=self.name,
            Key=key,
            UpdateExpression="SET #n = :v",
            ExpressionAttributeNames={"#n": name},
            ExpressionAttributeValues={":v": value},
        )
        return at

    def delete(self, key: dict[str, Any], *, at: int | None = None) -> int:
        at = self._go_on(at)
        self._aws.dynamodb.delete_item(TableName=self.name, Key=key)
        return at

    def put_expiring(self, item: dict[str, Any], *, seconds: int, at: int | None = None) -> int:
        """Put an item that expires so many seconds from then; see `expire`."""
        at = self._go_on(at)
        expires = {"N": str(at // _SECOND + seconds)}
        self._aws.dynamodb.put_item(TableName=self.name, Item={**item, "expires": expires})
        return at

    def expire(self, key: dict[str, Any]) -> int:
        """Go to the second that the item expires, and wait until it is gone."""
        found = self._aws.dynamodb.get_item(TableName=self.name, Key=key)["Item"]
        at = self.stand_at(int(found["expires"]["N"]) * _SECOND)
        get = self._aws.dynamodb.get_item
        wait_for(lambda: "Item" not in get(TableName=self.name, Key=key, ConsistentRead=True))
        return at

    def export_window(
        self,
        bucket: str,
        start: int,
        end: int | None,
        *,
        view: str | None = None,
        prefix: str | None = None,
    ) -> dict[str, Any]:
        """Export the writes from `start` to before `end`; return the finished description."""
        times: dict[str, Any] = {"ExportFromTime": datetime.fromtimestamp(start / _SECOND, UTC)}
        if end is not None:
            times["ExportToTime"] = datetime.fromtimestamp(end / _SECOND, UTC)
        if view is not None:
            times["ExportViewType"] = view
        more = {} if prefix is None else {"S3Prefix": prefix}
        started = self._aws.dynamodb.export_table_to_point_in_time(
            TableArn=self.arn,
            S3Bucket=bucket,
            ExportType="INCREMENTAL_EXPORT",
            IncrementalExportSpecification=times,
            **more,
        )["ExportDescription"]
        return finished(self._aws, started["ExportArn"])

    def _go_on(self, at: int | None) -> int:
        return self.stand_at(self.now() + 1 if at is None else at)
