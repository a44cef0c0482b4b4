"""CloudWatch: what DynamoDB counts and says nowhere else."""

from datetime import UTC, datetime

from cdc_pipeline.aws.session import AwsSession, aws_errors

_MOST_POINTS = 1440  # of one answer
_MINUTE_US = 60_000_000


def failed_to_replicate(aws: AwsSession, table: str, from_us: int, to_us: int) -> int:
    """How many records DynamoDB could not write to a table's Kinesis stream in [from_us, to_us).

    Whole minutes. Raises `SourceError`, also where the role may not ask.
    """
    minutes = -(-(to_us - from_us) // _MINUTE_US)
    # CloudWatch keeps minutes for 15 days only, hours for more than a year.
    period = 60 if minutes <= _MOST_POINTS else 3600 * -(-minutes // (60 * _MOST_POINTS))
    with aws_errors(
        f"metric FailedToReplicateRecordCount of table {table}",
        AccessDenied="grant the role cloudwatch:GetMetricStatistics",
        AccessDeniedException="grant the role cloudwatch:GetMetricStatistics",
    ):
        answer = aws.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/DynamoDB",
            MetricName="FailedToReplicateRecordCount",
            Dimensions=[
                {"Name": "TableName", "Value": table},
                {"Name": "DelegatedOperation", "Value": "PutRecord"},
            ],
            StartTime=datetime.fromtimestamp(from_us / 1_000_000, UTC),
            EndTime=datetime.fromtimestamp(to_us / 1_000_000, UTC),
            Period=period,
            Statistics=["Sum"],
        )
    return round(sum(point["Sum"] for point in answer.get("Datapoints", ())))
