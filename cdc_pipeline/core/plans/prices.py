"""AWS list prices of us-east-1 (docs/aws_facts.md, exports), and what idle tables need of them."""

from dataclasses import dataclass

from cdc_pipeline.core.plans.liveness import SERVER_HEARTBEAT_SECONDS, promise_seconds

EXPORT_USD_PER_GB = 0.10
"""Full export: by the size of the table; incremental export: by the changes processed."""

LEAST_EXPORT_BYTES = 10_000_000
"""Least billed size of an incremental export."""

RECOVERY_USD_PER_GB_MONTH = 0.20
"""Point-in-time recovery, by the size of the table."""

STREAM_READ_USD = 0.02 / 100_000
"""One GetRecords call on a DynamoDB stream, empty or with up to 1 MB. The first 2.5 million
calls of an account and month are free."""

KINESIS_SHARD_HOUR_USD = 0.015
KINESIS_ON_DEMAND_HOUR_USD = 0.04
"""Kinesis stream, without its data."""

S3_PUT_USD = 0.005 / 1000
"""One PUT, COPY, POST or LIST request to S3 Standard."""

S3_GET_USD = 0.0004 / 1000
"""One GET or HEAD request to S3 Standard, also for what is not there. DELETE is free."""

GLUE_USD = 1.00 / 1_000_000
"""One call of the Glue Data Catalog. The first million of an account and month is free."""

HOURS_PER_MONTH = 730


def stream_reads_usd(shards: int, interval_seconds: float, reads: float) -> float:
    """Return USD per month for captures every `interval_seconds`, with `reads` reads per shard.

    Only backlogs cost more: an answer holds up to 1 MB.
    """
    runs = HOURS_PER_MONTH * 3600 / interval_seconds
    return runs * shards * reads * STREAM_READ_USD


def kinesis_usd(shards: int, *, on_demand: bool) -> float:
    """Return USD per month for a Kinesis stream, without its data."""
    hourly = KINESIS_ON_DEMAND_HOUR_USD if on_demand else shards * KINESIS_SHARD_HOUR_USD
    return HOURS_PER_MONTH * hourly


@dataclass(frozen=True)
class Requests:
    """Requests to S3 and calls of Glue. `writes`: PUT and LIST, `reads`: GET and HEAD."""

    writes: float = 0
    reads: float = 0
    glue: float = 0

    @property
    def usd(self) -> float:
        """List price, without what AWS gives free."""
        return self.writes * S3_PUT_USD + self.reads * S3_GET_USD + self.glue * GLUE_USD

    def every(self, seconds: float) -> "Requests":
        """Return those of a month, if these are made every so many seconds."""
        times = HOURS_PER_MONTH * 3600 / seconds
        return Requests(self.writes * times, self.reads * times, self.glue * times)

    def __add__(self, other: "Requests") -> "Requests":
        """Return both together."""
        return Requests(
            self.writes + other.writes, self.reads + other.reads, self.glue + other.glue
        )


CAPTURE = Requests(writes=1, reads=4)
"""A capture that finds nothing, in a process of its own: it reads heartbeat, summary, newest entry
and the missing next one, and writes the heartbeat (`lake.storage.log`)."""

ENTRY = Requests(writes=3, reads=2)
"""The entry that an idle table gets every three hours, and a summary with a listing."""

LOOK = Requests(reads=3)
"""A look at a log that did not change; sensors that tick together share it."""

SERVED = Requests(writes=1, reads=3)
"""A heartbeat of a server, and its look at what others wrote; its other passes ask for nothing."""

PUBLISHED = Requests(reads=1, glue=1)
"""Loading a published table, for the check `fresh`."""

ADVANCE = Requests(writes=1, reads=2, glue=3)
"""Marking the published state of a quiet table as complete up to now."""

PARTITIONS = Requests(glue=2)
"""Comparing the partitions of a table."""


def idle_table(
    interval_seconds: float, *, partitions_seconds: float, derive_minutes: float, has_glue: bool
) -> Requests:
    """Return the requests of a month for a table in which nothing happens, captured by Dagster.

    With the intervals of the settings: of captures, of `glue_partition_sensor`, and of the marks of
    a quiet state as complete.
    """
    captures = CAPTURE.every(interval_seconds)
    looks = LOOK.every(max(5.0, min(30.0, interval_seconds)))  # shard_sensor
    return captures + looks + _kept(partitions_seconds, derive_minutes, has_glue=has_glue)


def served_table(
    every_seconds: float, *, partitions_seconds: float, derive_minutes: float, has_glue: bool
) -> Requests:
    """Return the same for a table that `cdc-pipeline serve` captures, beside Dagster."""
    beats = SERVED.every(max(SERVER_HEARTBEAT_SECONDS, every_seconds))
    looks = LOOK.every(promise_seconds(every_seconds))  # shard_sensor
    return beats + looks + _kept(partitions_seconds, derive_minutes, has_glue=has_glue)


def _kept(partitions_seconds: float, derive_minutes: float, *, has_glue: bool) -> Requests:
    """Requests of a month that do not depend on who captures."""
    minute = 60.0
    whole = (
        ENTRY.every(3 * 60 * minute)
        + LOOK.every(minute)  # downstream, gap_sensor, alarm_sensor
        + PUBLISHED.every(minute)
        + ADVANCE.every(max(minute, derive_minutes * 60))
    )
    if has_glue:
        return whole + PARTITIONS.every(partitions_seconds)
    return Requests(whole.writes, whole.reads)
