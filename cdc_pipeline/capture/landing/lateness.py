"""Changes that come behind a watermark that was given already: what was called complete was not.

Readers were told that everything written before the watermark had landed. A change that lands
behind it (AWS kept it back behind empty pages, a listing lacked its shard for longer than
`listing_lag_seconds`, Kinesis or Firehose took longer than the settings allow, this machine's clock
was ahead) takes nothing away: it lands like any other, and what was made of its day is stale. But
it shows that the watermark runs ahead, so it is counted in the log, and the check `watermark_holds`
reports it.
"""

from collections.abc import Sequence

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.ties import slot_of
from cdc_pipeline.core.log.entries import Late
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import BY_TIME, READ
from cdc_pipeline.lake.storage.landed_rows import LandedRows

_SECOND_US = 1_000_000
"""Times of DynamoDB Streams are rounded down to seconds: nothing counts that may be in time."""


def late_changes(state: LogState, landed: LandedRows, changes: Sequence[Change]) -> Late | None:
    """How many of the changes that are to land come too late, None: none of them.

    Kinesis and Firehose may deliver a change again at any time; repeats of one that has landed are
    looked up and left out. Raises `LakeError`.
    """
    given_us = state.watermark_us
    behind = [
        change
        for change in changes
        if change.write_time_us + _SECOND_US <= given_us and change.transport != READ
    ]
    repeats = [change for change in behind if change.transport in BY_TIME]
    if repeats:
        slots = {slot_of(change) for change in repeats}
        known = {row.uuid for row in landed.find(state.objects.values(), slots)}
        behind = [change for change in behind if change.uuid not in known]
    if not behind:
        return None
    return Late(len(behind), given_us - min(change.write_time_us for change in behind))
