"""Lateness and losses of DynamoDB's writes to Kinesis, by its metrics."""

from dataclasses import dataclass
from typing import NamedTuple

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.cloudwatch import failed_to_replicate, replication_ages
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.settings.table import Table

_METRIC_SPAN_US = 15 * 60_000_000
"""The metric has one point for five minutes, some minutes late."""


class Lateness(NamedTuple):
    """Longest delay of a change after its write, in µs, and warnings."""

    us: int
    warnings: tuple[str, ...] = ()


def replication_late_us(aws: AwsSession, table: Table, now_us: int) -> Lateness:
    """Return the larger of `kinesis.late_seconds` and the age reported by DynamoDB.

    Without permission to read the metric, or without values (no writes), the setting counts. The
    count of lost records needs the same permission and warns if it is missing.
    """
    configured_us = int(table.kinesis.late_seconds * 1_000_000)
    try:
        ages = replication_ages(aws, table.name, now_us - _METRIC_SPAN_US, now_us)
    except SourceError:
        return Lateness(configured_us)
    measured_us = max(ages.values(), default=0)
    if measured_us <= configured_us:
        return Lateness(configured_us)
    return Lateness(
        measured_us,
        (
            f"table {table.name}: DynamoDB is {measured_us / 1_000_000:.0f} s behind in writing to "
            f"Kinesis, more than `kinesis.late_seconds` ({table.kinesis.late_seconds:g}); the "
            "watermark is later by that time",
        ),
    )


@dataclass(frozen=True)
class ReplicationMetric:
    """Records that DynamoDB could not write to a table's Kinesis stream, by its metric.

    `late_us`: delay, in µs, after which the metric of a time is complete.
    """

    aws: AwsSession
    table: str
    late_us: int

    def count(self, from_us: int, to_us: int) -> int:
        """Count records lost in [from_us, to_us), whole minutes; raises `SourceError`."""
        return failed_to_replicate(self.aws, self.table, from_us, to_us)
