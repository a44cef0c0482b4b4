"""Kinesis channels: find the one that writes a stream to S3, and its configuration."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cdc_pipeline.aws.client.session import AwsSession, aws_errors, cause_code
from cdc_pipeline.aws.shards import client_of
from cdc_pipeline.core.errors import SourceError

DELIVERING = {"ACTIVE", "UPDATING"}
"""States of a channel in which records of its streams are delivered."""
_GRANT = "grant the role kinesis:ListChannels and kinesis:DescribeChannel"


@dataclass(frozen=True)
class Channel:
    """One channel with an S3 destination (DescribeChannel; botocore's model of Kinesis).

    `streams`: ARN and record format of each. `template`: of object keys. `error_prefix`: of dead
    letters, in `error_bucket`; AWS's default: `kinesis-channel/errors/<name>/<id>/`.
    `freshness_seconds`: target of its delivery delay, 300 to 900. `created_us`: distinguishes
    channels of one name.
    """

    name: str
    arn: str
    channel_id: str
    status: str
    reason: str
    created_us: int
    streams: tuple[tuple[str, str], ...]
    bucket: str
    template: str
    compression: str
    freshness_seconds: int
    error_bucket: str
    error_prefix: str

    def record_format(self, stream_arn: str) -> str | None:
        """Return its record format for a stream (JSON, STRING, ...); None: not its stream."""
        return dict(self.streams).get(stream_arn)


def describe_channel(aws: AwsSession, arn: str) -> Channel | None:
    """Describe a channel; None: no such channel (any more). Raises `SourceError`.

    AWS allows 5 calls per second and account.
    """
    try:
        with aws_errors(f"channel {arn}", AccessDeniedException=_GRANT):
            answer = client_of(aws, "kinesis").describe_channel(ChannelARN=arn)
    except SourceError as error:
        if cause_code(error) == "ResourceNotFoundException":
            return None
        raise
    description = answer["ChannelDescription"]
    target = description.get("S3DestinationConfiguration")
    if target is None:
        raise SourceError(
            f"channel {description['ChannelName']}: it does not write to a general purpose bucket",
            fix="create a channel with S3DestinationConfiguration; S3 Tables hold no typed items",
        )
    return _channel(description, target)


def find_channel(aws: AwsSession, stream_arn: str, name: str | None) -> Channel:
    """Find the channel that writes a stream to S3: by name or ARN, or the only one.

    Raises `SourceError` if there is no such channel.
    """
    channel = describe_channel(aws, channel_arn(aws, stream_arn, name))
    if channel is None or channel.record_format(stream_arn) is None:
        raise _missing(stream_arn, name)
    return channel


def channel_arn(aws: AwsSession, stream_arn: str, name: str | None) -> str:
    """Find the ARN of the channel for `find_channel`; raises `SourceError`."""
    if name and name.startswith("arn:"):
        return name
    channels = [
        one
        for one in _listed(aws, stream_arn)
        if one["ChannelDestinationType"] == "S3" and name in (None, one["ChannelName"])
    ]
    if not channels:
        raise _missing(stream_arn, name)
    # A failed or deleted channel may be listed beside its replacement.
    channels.sort(key=lambda one: one["ChannelStatus"] in DELIVERING)
    return channels[-1]["ChannelARN"]


def _missing(stream_arn: str, name: str | None) -> SourceError:
    return SourceError(
        f"stream {stream_arn.rpartition('/')[2]}: no channel {f'{name} ' if name else ''}writes it "
        "to S3",
        fix="create one (docs/transports/kinesis_channel.md), or name an existing one in "
        "`kinesis_channel: {channel: ...}`",
    )


def _listed(aws: AwsSession, stream_arn: str) -> Iterator[dict[str, Any]]:
    page_start: dict[str, Any] = {}
    while True:
        with aws_errors(f"channels of stream {stream_arn}", AccessDeniedException=_GRANT):
            answer = client_of(aws, "kinesis").list_channels(
                StreamFilter=[{"StreamARN": stream_arn}], **page_start
            )
        yield from answer["ChannelSummaries"]
        if not answer.get("NextToken"):
            return
        page_start = {"NextToken": answer["NextToken"]}


def _channel(description: dict[str, Any], target: dict[str, Any]) -> Channel:
    storage, name, channel_id = (
        target["StorageConfiguration"],
        description["ChannelName"],
        description["ChannelId"],
    )
    errors = target.get("DeadLetterQueueS3Configuration") or {}
    default = f"kinesis-channel/errors/{name}/{channel_id}/"
    return Channel(
        name=name,
        arn=description["ChannelARN"],
        channel_id=channel_id,
        status=description["ChannelStatus"],
        reason=description.get("ChannelStatusReason", ""),
        created_us=int(description["ChannelCreationTimestamp"].timestamp() * 1000) * 1000,
        streams=tuple(
            (one["StreamARN"], one["RecordConfiguration"]["RecordFormatType"])
            for one in description["StreamConfigurationList"]
        ),
        bucket=_bucket(storage["BucketARN"]),
        template=storage.get("OutputKeyTemplate", ""),
        compression=storage["CompressionType"],
        freshness_seconds=target["DataFreshnessInSeconds"],
        error_bucket=_bucket(errors.get("BucketARN", storage["BucketARN"])),
        error_prefix=errors.get("ErrorOutputPrefix") or default,
    )


def _bucket(arn: str) -> str:
    return arn.rpartition(":")[2]
