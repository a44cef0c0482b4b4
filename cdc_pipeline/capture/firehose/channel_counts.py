"""The proof that a channel's objects are complete: what it counted, against what was found."""

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from cdc_pipeline.aws.cloudwatch import channel_counts
from cdc_pipeline.capture.sources.channel import ChannelFiles, folders, followed_channel
from cdc_pipeline.capture.sources.firehose_listing import Arrived, arrived_since
from cdc_pipeline.core.changes.channel import least_missing
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import KINESIS_CHANNEL
from cdc_pipeline.lake.lake import TableLake

_MINUTE_US = 60_000_000
_SLACK_MINUTES = 10
"""How far a count's minute may be from that in which S3 has the object. Neither is documented."""
_DAY_US = 24 * 60 * _MINUTE_US


@dataclass(frozen=True)
class Counts:
    """Records of a channel in [from_us, to_us), by its metrics and by what was read.

    `missing`: so many at least were counted as delivered and are in no object; `lost`: so many at
    least were counted as failed and are in no dead letter. `unread`: objects that wait for a
    capture, so that `to_us` is before them.
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


def compare_counts(table: TableLake, state: LogState, now_us: int) -> Counts | None:
    """The last day's counts against objects, None where the log follows no channel (any more).

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
    letters = [found for found in files.letters() if found.day >= since]
    unread = [a for a in (*objects, *letters) if not _is_read(a, state)]
    # What a count is of may be in an object that has not been read: look at the time before it.
    oldest_us = min((_modified_us(found) for found in unread), default=to_us + late_us)
    to_us = min(to_us, oldest_us // _MINUTE_US * _MINUTE_US - _SLACK_MINUTES * _MINUTE_US)
    if to_us <= from_us:
        return Counts(from_us, from_us, 0, 0, 0, 0, 0, 0, len(unread))
    delivered = _counted(files, "SuccessfulRecordCount", from_us, to_us)
    failed = _counted(files, "FailedRecordCount", from_us, to_us)
    found, given_up = _rows(objects, state), _rows(letters, state)
    return Counts(
        from_us=from_us,
        to_us=to_us,
        delivered=sum(delivered.values()),
        found=_within(found, from_us, to_us),
        missing=least_missing(delivered, found, _SLACK_MINUTES),
        failed=sum(failed.values()),
        letters=_within(given_up, from_us, to_us),
        lost=least_missing(failed, given_up, _SLACK_MINUTES),
        unread=len(unread),
    )


def _counted(files: ChannelFiles, metric: str, from_us: int, to_us: int) -> dict[int, int]:
    """By minutes since the epoch, of all streams whose records lie in the same folder."""
    aws = files.table.source
    folder = folders(files.channel, files.stream_arn)
    counts: Counter[int] = Counter()
    for stream_arn, _ in files.channel.streams:
        if folders(files.channel, stream_arn) == folder:
            where = files.dimensions(stream_arn)
            found = channel_counts(aws, where, metric, from_us, to_us)
            counts.update({minute // _MINUTE_US: count for minute, count in found.items()})
    return dict(counts)


def _rows(objects: list[Arrived], state: LogState) -> dict[int, int]:
    rows: Counter[int] = Counter()
    for found in objects:
        if _is_read(found, state):
            rows[_modified_us(found) // _MINUTE_US] += state.files[found.uri].rows
    return dict(rows)


def _is_read(found: Arrived, state: LogState) -> bool:
    known = state.files.get(found.uri)
    return known is not None and known.whole and known.etag == found.object.etag


def _within(rows: dict[int, int], from_us: int, to_us: int) -> int:
    return sum(n for minute, n in rows.items() if from_us <= minute * _MINUTE_US < to_us)


def _modified_us(found: Arrived) -> int:
    return round(found.object.modified.timestamp() * 1_000_000)
