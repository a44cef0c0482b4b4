"""CloudWatch metrics of a table's changes that no other API has."""

from collections.abc import Mapping
from dataclasses import dataclass

from cdc_pipeline.aws.client.session import AwsSession, aws_errors
from cdc_pipeline.core.clock import utc

_MOST_POINTS = 1440  # of one answer
_MINUTE_US = 60_000_000
_GRANT = "grant the role cloudwatch:GetMetricStatistics"
_REPLICATION = {"DelegatedOperation": "PutRecord"}


@dataclass(frozen=True)
class _Metric:
    """A metric of one resource, whose dimensions are all given."""

    namespace: str
    name: str
    dimensions: Mapping[str, str]


def failed_to_replicate(aws: AwsSession, table: str, from_us: int, to_us: int) -> int:
    """Count the records that DynamoDB could not write to Kinesis in [from_us, to_us).

    Whole minutes. Raises `SourceError`, also without the permission.
    """
    minutes = -(-(to_us - from_us) // _MINUTE_US)
    # CloudWatch keeps minutes for 15 days only, hours for more than a year.
    period = 60 if minutes <= _MOST_POINTS else 3600 * -(-minutes // (60 * _MOST_POINTS))
    dimensions = {"TableName": table, **_REPLICATION}
    metric = _Metric("AWS/DynamoDB", "FailedToReplicateRecordCount", dimensions)
    points = _points(aws, metric, (from_us, to_us), "Sum", period)
    return round(sum(points.values()))


def replication_ages(aws: AwsSession, table: str, from_us: int, to_us: int) -> dict[int, int]:
    """Return the age of DynamoDB's oldest change not in Kinesis yet, by minute, all in µs.

    `AgeOfOldestUnreplicatedRecord` of AWS/DynamoDB in milliseconds, dimensions TableName and
    DelegatedOperation; a point covers five minutes (DynamoDB guide, "metrics and dimensions").
    Minutes without a point are absent, here and below. Raises `SourceError`.
    """
    dimensions = {"TableName": table, **_REPLICATION}
    metric = _Metric("AWS/DynamoDB", "AgeOfOldestUnreplicatedRecord", dimensions)
    points = _points(aws, metric, (from_us, to_us), "Maximum")
    return {minute: round(age * 1000) for minute, age in points.items()}


def firehose_ages(
    aws: AwsSession, stream: str, from_us: int, to_us: int
) -> tuple[dict[int, int], dict[int, int]]:
    """Return the age of Firehose's oldest record, and its lag after its Kinesis stream.

    `DeliveryToS3.DataFreshness` of AWS/Firehose in seconds, counted from a record's arrival in
    Firehose, and `KinesisMillisBehindLatest`, dimension DeliveryStreamName of both (Firehose guide,
    "Monitor with CloudWatch metrics"). By minute, all in µs. Raises `SourceError`.
    """
    dimensions, time = {"DeliveryStreamName": stream}, (from_us, to_us)
    freshness = _Metric("AWS/Firehose", "DeliveryToS3.DataFreshness", dimensions)
    lag = _Metric("AWS/Firehose", "KinesisMillisBehindLatest", dimensions)
    age = _points(aws, freshness, time, "Maximum")
    behind = _points(aws, lag, time, "Maximum")
    return (
        {minute: round(seconds * 1_000_000) for minute, seconds in age.items()},
        {minute: round(millis * 1000) for minute, millis in behind.items()},
    )


def channel_ages(
    aws: AwsSession, where: Mapping[str, str], from_us: int, to_us: int
) -> dict[int, int]:
    """Return the age of a Kinesis channel's oldest undelivered record, by minute, all in µs.

    `DeliveryToS3.DataFreshness` of AWS/Kinesis in seconds (Kinesis guide, "Monitoring data
    delivery"). `where`: StreamName, ChannelName and ChannelId, all three. Raises `SourceError`.
    """
    metric = _Metric("AWS/Kinesis", "DeliveryToS3.DataFreshness", where)
    points = _points(aws, metric, (from_us, to_us), "Maximum")
    return {minute: round(seconds * 1_000_000) for minute, seconds in points.items()}


def channel_counts(
    aws: AwsSession, where: Mapping[str, str], count: str, from_us: int, to_us: int
) -> dict[int, int]:
    """Return a channel's counts of records by minute (µs), for a day at most.

    `count`: `SuccessfulRecordCount` or `FailedRecordCount`, of `DeliveryToS3`. `where`: as for
    `channel_ages`. Raises `SourceError`.
    """
    metric = _Metric("AWS/Kinesis", f"DeliveryToS3.{count}", where)
    points = _points(aws, metric, (from_us, to_us), "Sum")
    return {minute: round(records) for minute, records in points.items()}


def _points(
    aws: AwsSession, metric: _Metric, time: tuple[int, int], statistic: str, period: int = 60
) -> dict[int, float]:
    with aws_errors(
        f"metric {metric.name} of {', '.join(metric.dimensions.values())}",
        AccessDenied=_GRANT,
        AccessDeniedException=_GRANT,
    ):
        answer = aws.client("cloudwatch").get_metric_statistics(
            Namespace=metric.namespace,
            MetricName=metric.name,
            Dimensions=[{"Name": key, "Value": value} for key, value in metric.dimensions.items()],
            StartTime=utc(time[0]),
            EndTime=utc(time[1]),
            Period=period,
            Statistics=[statistic],
        )
    return {
        round(point["Timestamp"].timestamp()) * 1_000_000: point[statistic]
        for point in answer.get("Datapoints", ())
    }
