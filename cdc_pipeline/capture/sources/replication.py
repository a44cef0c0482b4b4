"""How late DynamoDB writes changes to Kinesis, and which it could not write: by its metrics."""

from dataclasses import dataclass
from typing import NamedTuple

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.cloudwatch import failed_to_replicate, replication_ages
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.settings.model import Table

_LOOK_BACK_US = 15 * 60_000_000
"""Points of the metric are of five minutes and come some minutes late."""


class Lateness(NamedTuple):
    """How much later than it was written a change may come, in µs, and what to tell about it."""

    us: int
    warnings: tuple[str, ...] = ()


def replication_late_us(aws: AwsSession, table: Table, now_us: int) -> Lateness:
    """The larger one of `kinesis.late_seconds` and the age that DynamoDB reported lately.

    Where the metric may not be read, or says nothing (nothing is written), the setting counts; that
    it may not be read is told by whoever counts lost records, which needs the same permission.
    """
    set_us = int(table.kinesis.late_seconds * 1_000_000)
    try:
        ages = replication_ages(aws, table.name, now_us - _LOOK_BACK_US, now_us)
    except SourceError:
        return Lateness(set_us)
    measured_us = max(ages.values(), default=0)
    if measured_us <= set_us:
        return Lateness(set_us)
    return Lateness(
        measured_us,
        (
            f"table {table.name}: DynamoDB is {measured_us / 1_000_000:.0f} s behind in writing to "
            f"Kinesis, more than `kinesis.late_seconds` ({table.kinesis.late_seconds:g}); so "
            "much later is the watermark",
        ),
    )


@dataclass(frozen=True)
class ReplicationMetric:
    """What DynamoDB could not write to a table's Kinesis stream, by its metric.

    `late_us`: how long after a time the metric is complete.
    """

    aws: AwsSession
    table: str
    late_us: int

    def count(self, from_us: int, to_us: int) -> int:
        """Records lost in [from_us, to_us), whole minutes; raises `SourceError`."""
        return failed_to_replicate(self.aws, self.table, from_us, to_us)
