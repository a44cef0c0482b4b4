"""Objects that AWS delivers to S3 as a source: listing, records, and the time they cover."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import BinaryIO, NamedTuple, Protocol

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.cloudwatch import firehose_ages
from cdc_pipeline.capture.sources.firehose_listing import ArrivedObject, arrived_since
from cdc_pipeline.capture.sources.firehose_objects import Record, records
from cdc_pipeline.capture.sources.replication import replication_late_us
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.plans.delivery_lag import Ages, delivered_before
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.settings.table import Firehose, Table

LOOK_BACK_US = 3600 * 1_000_000


class LostRecord(NamedTuple):
    """A record that cannot be read any more, written at `from_us` at the earliest."""

    from_us: int


class CoveredTime(NamedTuple):
    """A time, in µs, before which all changes are in a listing's objects, and warnings."""

    us: int
    warnings: tuple[str, ...] = ()


class FileSource(Protocol):
    """Delivered objects of one table, for `capture.firehose.drain`."""

    @property
    def window_days(self) -> int:
        """Number of days after its own for which a folder may receive objects."""
        ...

    @property
    def named_prefixes(self) -> Sequence[str]:
        """Prefixes from the settings, which may be mistyped."""
        ...

    def arrived(self, since: date, now_us: int) -> list[ArrivedObject]:
        """List all objects in folders of `since` and later, oldest first; raises `SourceError`."""
        ...

    def records(
        self, arrived: ArrivedObject, file: BinaryIO, target: Target
    ) -> Iterator[Record | LostRecord]:
        """Read the records of an object, in the same order each time; raises `SourceError`."""
        ...

    def reached(self, listed_us: int) -> CoveredTime:
        """Return the time proven complete once all objects of a listing have been read."""
        ...


@dataclass(frozen=True)
class FirehoseFiles:
    """Objects under the prefixes that the settings name."""

    table: TableLake
    settings: Firehose

    @property
    def window_days(self) -> int:
        """See `FileSource`."""
        return self.settings.window_days

    @property
    def named_prefixes(self) -> Sequence[str]:
        """See `FileSource`."""
        return self.settings.prefixes

    def arrived(self, since: date, now_us: int) -> list[ArrivedObject]:
        """See `FileSource`."""
        return arrived_since(self.table.lake.aws, self.settings, since, now_us)

    def records(self, arrived: ArrivedObject, file: BinaryIO, target: Target) -> Iterator[Record]:
        """See `FileSource`."""
        return records(file, arrived.uri, target)

    def reached(self, listed_us: int) -> CoveredTime:
        """By Firehose's metrics if the settings name its stream, else `lag_minutes` ago."""
        name = self.settings.delivery_stream
        if name is None:
            return covered_by_lag(self.settings.lag_minutes, listed_us)
        aws = self.table.source

        def ages(from_us: int) -> list[Ages]:
            return list(firehose_ages(aws, name, from_us, listed_us))

        return covered_by_metrics(
            aws, self.table.settings, ages, self.settings.lag_minutes, listed_us
        )


class _ReadAges(Protocol):
    def __call__(self, from_us: int) -> list[Ages]:
        """Read the ages of each leg of the delivery since a time; raises `SourceError`."""
        ...


def covered_by_lag(lag_minutes: float, listed_us: int, *warnings: str) -> CoveredTime:
    """Return the time covered by the lag of the settings, without measurement."""
    return CoveredTime(listed_us - int(lag_minutes * 60_000_000), warnings)


def covered_by_metrics(
    aws: AwsSession, table: Table, ages: _ReadAges, lag_minutes: float, listed_us: int
) -> CoveredTime:
    """Return the time proven by CloudWatch's metrics, less DynamoDB's lateness.

    Metrics are complete `kinesis.metric_minutes` later. Without permission to read them there is a
    warning, without values (an idle stream) none; in both cases the lag of the settings counts.
    """
    known_us = listed_us - int(table.kinesis.metric_minutes * 60_000_000)
    try:
        delivered_us = delivered_before(ages(listed_us - LOOK_BACK_US), known_us)
    except SourceError as error:
        warning = f"table {table.name}: delivery is not measured, `lag_minutes` counts: {error}"
        return covered_by_lag(lag_minutes, listed_us, warning)
    if delivered_us is None:
        return covered_by_lag(lag_minutes, listed_us)
    late = replication_late_us(aws, table, listed_us)
    return CoveredTime(delivered_us - late.us, late.warnings)
