"""What AWS charges for what we ask of it: list prices of us-east-1 (docs/aws_facts.md, exports)."""

EXPORT_USD_PER_GB = 0.10
"""Of a full export, by the size of the table; of an incremental one, by the changes processed."""

LEAST_EXPORT_BYTES = 10_000_000
"""What an incremental export is billed at least."""

RECOVERY_USD_PER_GB_MONTH = 0.20
"""Of point-in-time recovery, by the size of the table."""

STREAM_READ_USD = 0.02 / 100_000
"""Of one GetRecords call on a DynamoDB stream, empty or with up to 1 MB. AWS gives an account the
first 2.5 million of a month."""

KINESIS_SHARD_HOUR_USD = 0.015
KINESIS_ON_DEMAND_HOUR_USD = 0.04
"""Of a Kinesis stream, before its data."""

HOURS_PER_MONTH = 730


def stream_reads_usd(shards: int, interval_seconds: float, reads: float) -> float:
    """USD per month of captures every `interval_seconds` that read each shard `reads` times.

    More is due only for backlogs: an answer holds up to 1 MB.
    """
    runs = HOURS_PER_MONTH * 3600 / interval_seconds
    return runs * shards * reads * STREAM_READ_USD


def kinesis_usd(shards: int, *, on_demand: bool) -> float:
    """USD per month of a Kinesis stream, before its data."""
    hourly = KINESIS_ON_DEMAND_HOUR_USD if on_demand else shards * KINESIS_SHARD_HOUR_USD
    return HOURS_PER_MONTH * hourly
