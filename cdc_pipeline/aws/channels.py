"""Kinesis channels: the one that writes a stream to S3, and how it is configured."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cdc_pipeline.aws.client.session import AwsSession, aws_errors, code_behind
from cdc_pipeline.aws.shards import client_of
from cdc_pipeline.core.errors import SourceError

DELIVERING = {"ACTIVE", "UPDATING"}
"""States of a channel in which what is written to its streams is delivered."""
_GRANT = "grant the role kinesis:ListChannels and kinesis:DescribeChannel"


@dataclass(frozen=True)
class Channel:
    """One channel with an S3 destination (DescribeChannel; botocore's model of Kinesis).

    `streams`: ARN and record format of each. `template`: of object keys. `error_prefix`: of dead
    letters, in `error_bucket`; None: AWS's default, `kinesis-channel/errors/<name>/<id>/`.
    `freshness_seconds`: how soon it wants to deliver, 300 to 900. `created_us`: tells channels of
    one name apart.
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
        """How it takes a stream's records (JSON, STRING, ...), None: it is not its stream."""
        return dict(self.streams).get(stream_arn)


def describe_channel(aws: AwsSession, arn: str) -> Channel | None:
    """A channel, None if there is none of that ARN (any more). Raises `SourceError`.

    AWS allows 5 calls a second and account.
    """
    try:
        with aws_errors(f"channel {arn}", AccessDeniedException=_GRANT):
            answer = client_of(aws, "kinesis").describe_channel(ChannelARN=arn)
    except SourceError as error:
        if code_behind(error) == "ResourceNotFoundException":
            return None
        raise
    found = answer["ChannelDescription"]
    target = found.get("S3DestinationConfiguration")
    if target is None:
        raise SourceError(
            f"channel {found['ChannelName']}: it does not write to a general purpose bucket",
            fix="create a channel with S3DestinationConfiguration; S3 Tables hold no typed items",
        )
    return _channel(found, target)


def find_channel(aws: AwsSession, stream_arn: str, name: str | None) -> Channel:
    """The channel that writes a stream to S3: of this name or ARN, or the only one.

    Raises `SourceError` where there is none, or not one of that name.
    """
    found = describe_channel(aws, channel_arn(aws, stream_arn, name))
    if found is None or found.record_format(stream_arn) is None:
        raise _missing(stream_arn, name)
    return found


def channel_arn(aws: AwsSession, stream_arn: str, name: str | None) -> str:
    """The ARN of the channel that `find_channel` describes; raises `SourceError`."""
    if name and name.startswith("arn:"):
        return name
    listed = [
        one
        for one in _listed(aws, stream_arn)
        if one["ChannelDestinationType"] == "S3" and name in (None, one["ChannelName"])
    ]
    if not listed:
        raise _missing(stream_arn, name)
    # One that failed or goes may stand beside the one that took its place.
    listed.sort(key=lambda one: one["ChannelStatus"] in DELIVERING)
    return listed[-1]["ChannelARN"]


def _missing(stream_arn: str, name: str | None) -> SourceError:
    return SourceError(
        f"stream {stream_arn.rpartition('/')[2]}: no channel {f'{name} ' if name else ''}writes it "
        "to S3",
        fix="create one (docs/transports/kinesis_channel.md), or name the one that there is in "
        "`kinesis_channel: {channel: ...}`",
    )


def _listed(aws: AwsSession, stream_arn: str) -> Iterator[dict[str, Any]]:
    place: dict[str, Any] = {}
    while True:
        with aws_errors(f"channels of stream {stream_arn}", AccessDeniedException=_GRANT):
            answer = client_of(aws, "kinesis").list_channels(
                StreamFilter=[{"StreamARN": stream_arn}], **place
            )
        yield from answer["ChannelSummaries"]
        if not answer.get("NextToken"):
            return
        place = {"NextToken": answer["NextToken"]}


def _channel(found: dict[str, Any], target: dict[str, Any]) -> Channel:
    storage, name, channel_id = (
        target["StorageConfiguration"],
        found["ChannelName"],
        found["ChannelId"],
    )
    errors = target.get("DeadLetterQueueS3Configuration") or {}
    default = f"kinesis-channel/errors/{name}/{channel_id}/"
    return Channel(
        name=name,
        arn=found["ChannelARN"],
        channel_id=channel_id,
        status=found["ChannelStatus"],
        reason=found.get("ChannelStatusReason", ""),
        created_us=int(found["ChannelCreationTimestamp"].timestamp() * 1000) * 1000,
        streams=tuple(
            (one["StreamARN"], one["RecordConfiguration"]["RecordFormatType"])
            for one in found["StreamConfigurationList"]
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
