"""Late changes: written before a watermark that was published before they landed.

A watermark promises that everything written before it has landed. A late change (AWS returned it
after many empty pages, a listing lacked its shard for longer than `listing_lag_seconds`, Kinesis or
Firehose took longer than the settings allow, this machine's clock was ahead) does no harm: it lands
like any other, and the tables built from its day become stale. But it shows that the watermark runs
ahead, so it is counted in the log, and the check `watermark_holds` reports it.
"""

from collections.abc import Sequence

import pyarrow.compute as pc

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.ties import slot_of
from cdc_pipeline.core.log.entries import LateChanges
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.transports import BY_TIME, READ
from cdc_pipeline.lake.storage.changes import Changes
from cdc_pipeline.lake.storage.landed_rows import LandedRows

_SECOND_US = 1_000_000
"""Times of DynamoDB Streams are rounded down to seconds: in doubt, a change is not late."""


def late_changes(
    state: LogState, landed: LandedRows, changes: Sequence[Change]
) -> LateChanges | None:
    """Count the late ones among changes about to land; None: there are none.

    Kinesis and Firehose may deliver a change again at any time; repeats of landed changes are
    found and do not count. Raises `LakeError`.
    """
    published_us, given = state.watermark_us, Changes.of(changes)
    old_us = published_us - _SECOND_US
    old = given.where(pc.less_equal(given.times_us(), old_us))  # type: ignore[attr-defined]
    late = [change for change in old if change.transport != READ]
    repeatable = [change for change in late if change.transport in BY_TIME]
    if repeatable:
        slots = {slot_of(change) for change in repeatable}
        landed_ids = {row.uuid for row in landed.find(state.objects.values(), slots)}
        late = [change for change in late if change.uuid not in landed_ids]
    if not late:
        return None
    return LateChanges(len(late), published_us - min(change.write_time_us for change in late))
