"""Completeness check of a channel's objects: its metrics against the records read."""

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from cdc_pipeline.aws.cloudwatch import channel_counts
from cdc_pipeline.capture.sources.firehose_listing import ArrivedObject, arrived_since
from cdc_pipeline.capture.sources.kinesis_channel import (
    ChannelFiles,
    channel_folders,
    followed_channel,
)
from cdc_pipeline.core.changes.kinesis_channel import least_missing
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import KINESIS_CHANNEL
from cdc_pipeline.lake.lake import TableLake

_MINUTE_US = 60_000_000
_SLACK_MINUTES = 10
"""Largest distance, in minutes, between a count and its object in S3. Neither is documented."""
_DAY_US = 24 * 60 * _MINUTE_US


@dataclass(frozen=True)
class ChannelCounts:
    """Records of a channel in [from_us, to_us), by its metrics and by the objects read.

    `delivered` and `failed`: records by the metrics; `found` and `letters`: records in objects and
    in dead letters. `missing`: least number of delivered records in no object; `lost`: least number
    of failed records in no dead letter. `unread`: objects not captured yet; `to_us` is before them.
    """

    from_us: int
    to_us: int
    delivered: int
    found: int
    missing: int
    failed: int
    letters: int
    lost: int
    unread: int


def compare_counts(table: TableLake, state: LogState, now_us: int) -> ChannelCounts | None:
    """Compare the last day's metrics with the objects; None if the log follows no channel.

    Requests: two metrics for each of the channel's streams that share the folder, and a listing of
    the day's folders. Raises `SourceError`.
    """
    if state.stream is None or state.stream.transport != KINESIS_CHANNEL:
        return None
    files = followed_channel(table, state.stream).files
    if not isinstance(files, ChannelFiles):
        return None
    late_us = max(
        int(table.settings.kinesis.metric_minutes * _MINUTE_US), _SLACK_MINUTES * _MINUTE_US
    )
    to_us = (now_us - late_us) // _MINUTE_US * _MINUTE_US
    from_us = to_us - _DAY_US
    since = day_of(from_us) - timedelta(1)
    objects = arrived_since(table.lake.aws, files.folders, since, now_us)
    letters = [letter for letter in files.letters() if letter.day >= since]
    unread = [a for a in (*objects, *letters) if not _is_read(a, state)]
    # Counted records may be in an unread object: compare only the time before it.
    oldest_us = min((_modified_us(arrived) for arrived in unread), default=to_us + late_us)
    to_us = min(to_us, oldest_us // _MINUTE_US * _MINUTE_US - _SLACK_MINUTES * _MINUTE_US)
    if to_us <= from_us:
        return ChannelCounts(from_us, from_us, 0, 0, 0, 0, 0, 0, len(unread))
    delivered = _counted(files, "SuccessfulRecordCount", from_us, to_us)
    failed = _counted(files, "FailedRecordCount", from_us, to_us)
    read, given_up = _rows(objects, state), _rows(letters, state)
    return ChannelCounts(
        from_us=from_us,
        to_us=to_us,
        delivered=sum(delivered.values()),
        found=_within(read, from_us, to_us),
        missing=least_missing(delivered, read, _SLACK_MINUTES),
        failed=sum(failed.values()),
        letters=_within(given_up, from_us, to_us),
        lost=least_missing(failed, given_up, _SLACK_MINUTES),
        unread=len(unread),
    )


def _counted(files: ChannelFiles, metric: str, from_us: int, to_us: int) -> dict[int, int]:
    """A metric by minute since the epoch, summed over all streams with the same folder."""
    aws = files.table.source
    folder = channel_folders(files.channel, files.stream_arn)
    counts: Counter[int] = Counter()
    for stream_arn, _ in files.channel.streams:
        if channel_folders(files.channel, stream_arn) == folder:
            dimensions = files.dimensions(stream_arn)
            by_time = channel_counts(aws, dimensions, metric, from_us, to_us)
            counts.update({time_us // _MINUTE_US: count for time_us, count in by_time.items()})
    return dict(counts)


def _rows(objects: list[ArrivedObject], state: LogState) -> dict[int, int]:
    rows: Counter[int] = Counter()
    for arrived in objects:
        if _is_read(arrived, state):
            rows[_modified_us(arrived) // _MINUTE_US] += state.files[arrived.uri].rows
    return dict(rows)


def _is_read(arrived: ArrivedObject, state: LogState) -> bool:
    logged = state.files.get(arrived.uri)
    return logged is not None and logged.whole and logged.etag == arrived.object.etag


def _within(rows: dict[int, int], from_us: int, to_us: int) -> int:
    return sum(n for minute, n in rows.items() if from_us <= minute * _MINUTE_US < to_us)


def _modified_us(arrived: ArrivedObject) -> int:
    return round(arrived.object.modified.timestamp() * 1_000_000)
