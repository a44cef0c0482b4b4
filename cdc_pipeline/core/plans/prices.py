"""AWS list prices of us-east-1 (docs/aws_facts.md, exports)."""

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
