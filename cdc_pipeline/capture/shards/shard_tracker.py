"""A stream's shards during a capture run: existing, readable, and possibly missing ones.

A listing of a stream has all shards of a day, for a large table tens of thousands. So a large
stream is listed whole every ten minutes; between listings the children of ended shards are
requested. For a small stream both take a single request. Only whole listings prove that no shard is
missing (`capture.landing.gaps.proven_times`).
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from cdc_pipeline.capture.landing import gaps
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.errors import ShardGoneError
from cdc_pipeline.core.log.entries import ShardState
from cdc_pipeline.core.log.lineage import Shard, depths, readable
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.storage.log import CaptureLog

_DISCOVERY_SECONDS = 60
_CHILD_WAIT_SECONDS = 0.1
_CHILD_REQUESTS = 5
_CHILDREN_AT_ONCE = 10
"""As in AWS's own consumers: the children of an ended shard are requested five times, with doubling
pauses, and then left to the next run. AWS allows ten requests a second."""


@dataclass
class _Childless:
    """An ended shard without a listed child: requests so far, and monotonic time of the next."""

    requests: int = 0
    due: float = 0

    def request_later(self, now: float) -> None:
        self.due = now + _CHILD_WAIT_SECONDS * 2**self.requests
        self.requests += 1


def _unlisted(shard: ShardState) -> Shard:
    """A shard of the log, not of a listing: only reading it shows whether it is gone or ended."""
    return Shard(shard.shard_id, shard.parent_id, None, None, shard.adjacent_id)


class ShardTracker:
    """Shards of one stream. `state` (the log) and `shards` (their states) change with the run.

    `enabled`: the table writes to the stream, by the last listing. `stream_began_us`: no record of
    the stream is older, 0: unknown. `next_listing_us`: time of the next whole listing.
    `relist_seconds`: least pause between whole listings, if nothing asks for one.
    """

    def __init__(
        self,
        log: CaptureLog,
        source: Source,
        state: LogState,
        shards: dict[str, ShardState],
        lag_us: int,
        relist_seconds: float = 0,
    ) -> None:
        assert state.stream is not None  # it is followed
        self.enabled = True
        self.retention_hours = state.stream.retention_hours
        self.stream_began_us = 0
        self.next_listing_us = 0
        self._log = log
        self._source = source
        self._state = state
        self._shards = shards
        self._stream = state.stream
        self._lag_us = lag_us
        self._relist_seconds = relist_seconds
        self._listed: list[Shard] = []
        # Time of this run's last listing, 0: none yet.
        self._listing_us = 0
        # Shards with known children, and ended ones without.
        self._parents: set[str] = set()
        self._childless: dict[str, _Childless] = {}
        # Whether the server supports requests for the children of one shard.
        self._has_child_requests = True

    def begin(self, *, is_on: bool) -> None:
        """Find the shards to read: in the log after a recent listing, else by a new listing.

        `is_on`: the stream is known to be enabled; otherwise it is listed. Raises the errors of
        `discover`.
        """
        state, now_us, margin_us = self._state, self._log.now_us(), self._log.margin_us
        self._parents = {
            p for s in state.shards.values() for p in (s.parent_id, s.adjacent_id) if p
        }
        is_recent = gaps.is_listed_lately(
            state, self._source.reading, self._lag_us, now_us, self._relist_seconds
        )
        # With pauses between listings, the hidden roots of a new stream are found after a pause.
        is_known = gaps.is_read_lately if self._relist_seconds else gaps.is_lineage_known
        if not is_on or not is_recent or not is_known(state, margin_us, now_us):
            self.discover()
            return
        self._listed = [_unlisted(s) for s in state.shards.values() if s.status == "reading"]
        self.next_listing_us = state.discovered_us + self._lag_us + self._listing_valid_us()
        oldest_us = now_us - self._stream.retention_us
        for shard in state.shards.values():
            may_be_listed = shard.status == "finished" and shard.read_to_us > oldest_us
            if may_be_listed and shard.shard_id not in self._parents:
                self._childless[shard.shard_id] = _Childless(_CHILD_REQUESTS - 1)

    def _listing_valid_us(self) -> int:
        """Time in µs for which a listing is used within a run."""
        seconds = self._source.reading.listing_seconds(len(self._shards))
        return int(max(seconds, _DISCOVERY_SECONDS) * 1_000_000)

    def note_ended(self, read: Iterable[str]) -> None:
        """Note the ended ones of the shards just read: their children are requested next."""
        self._childless |= {s: _Childless() for s in read if self._is_done(s)}

    def _is_done(self, shard_id: str) -> bool:
        shard = self._shards.get(shard_id)
        return shard is not None and shard.status != "reading"

    def readable(self) -> list[Shard]:
        """Shards that may be read now: parents before children."""
        return readable(self._listed, self._is_done, self._shards.__contains__)

    def follow_ended(self) -> None:
        """Find the children of ended shards, with as few requests as possible.

        Children not listed yet are requested again, with pauses. Raises the errors of `discover`.
        """
        waiting = {s: w for s, w in self._childless.items() if s not in self._parents}
        waiting = {s: w for s, w in waiting.items() if w.requests < _CHILD_REQUESTS}
        self._childless = waiting
        fresh = [s for s, w in waiting.items() if not w.requests]
        requests = self._source.reading.listing_seconds(len(self._shards))
        lost = [s for s in fresh if self._shards[s].status == "lost"]
        if fresh and (lost or not self._has_child_requests or len(fresh) >= requests):
            self.discover()
            return
        now = time.monotonic()
        due = [s for s, w in waiting.items() if w.due <= now]
        children: list[Shard] = []
        for shard_id in due[:_CHILDREN_AT_ONCE]:
            listed = self._source.shards.children(self._source.arn, shard_id)
            if listed is None:
                self._has_child_requests = False
                self.discover()
                return
            waiting[shard_id].request_later(now)
            children += listed
        if children:
            ids = {shard.shard_id for shard in self._listed}
            self._listed += [child for child in children if child.shard_id not in ids]
            self._add(children)

    def wait(self, sleep: Callable[[float], object]) -> bool:
        """Wait until the next request for children is due; return False if there is none."""
        waiting = [w for s, w in self._childless.items() if s not in self._parents]
        waiting = [w for w in waiting if w.requests < _CHILD_REQUESTS]
        if not waiting:
            return False
        soonest = min(w.due for w in waiting)
        pause = soonest - time.monotonic()
        if pause > 0:
            sleep(pause)
        for shard in waiting:
            shard.due = 0 if shard.due <= soonest else shard.due
        return True

    def discover(self) -> None:
        """List the stream's shards and add new ones.

        A listing may lack shards younger than `lag_us`; only older ones count towards the
        watermark. Raises `SourceError`, and `ShardGoneError` if the stream no longer exists.
        """
        started_us = self._log.now_us()
        listing = self._source.shards.describe(self._source.arn)
        if listing.created_us != self._stream.created_us:
            raise ShardGoneError(f"stream {listing.arn} was deleted and created again")
        self._add(listing.shards + self._unseen_parents(listing.shards))
        listed = {shard.shard_id for shard in listing.shards}
        # A listing may lack a shard for a while; only reading it shows whether it is gone.
        unread = [s for s in self._shards.values() if s.status == "reading"]
        self._listed = listing.shards + [_unlisted(s) for s in unread if s.shard_id not in listed]
        self._listing_us, self.enabled = started_us, listing.status == "ENABLED"
        self.next_listing_us = started_us + self._listing_valid_us()
        self.stream_began_us = listing.began_us
        self.retention_hours = listing.retention_hours
        # Missing children are requested one by one, and repeatedly if the shard ended just now.
        waiting, self._childless = self._childless, {}
        for shard_id in self._ended() - self._parents if self._requests_children() else ():
            known = self._state.shards.get(shard_id)
            is_old = known is not None and known.status != "reading"
            childless = waiting.get(shard_id) or _Childless(_CHILD_REQUESTS - 1 if is_old else 0)
            self._childless[shard_id] = replace(childless, requests=max(childless.requests, 1))

    def _requests_children(self) -> bool:
        """Whether requests for children may find more than listings: only in an enabled stream."""
        is_on = self.enabled and not self._stream.off
        return is_on and self._has_child_requests and self._source.reading.in_order

    def _ended(self) -> set[str]:
        """Listed shards that have ended, by the listing or by reading them."""
        return {s.shard_id for s in self._listed if not s.is_open or self._is_done(s.shard_id)}

    def _add(self, shards: list[Shard]) -> None:
        """Add shards that are not known yet."""
        levels = depths(shards, {s.shard_id: s.depth for s in self._shards.values()})
        for shard in shards:
            if shard.shard_id not in self._shards:
                self._shards[shard.shard_id] = ShardState(
                    shard.shard_id,
                    shard.parent_id,
                    levels[shard.shard_id],
                    # It was in no listing yet, so it is younger than the time proven by listings.
                    read_to_us=self._state.discovered_us,
                    adjacent_id=shard.adjacent_id,
                )
            self._parents.update(shard.parents)

    def _unseen_parents(self, listed: list[Shard]) -> list[Shard]:
        """Parents that were in no listing: reading them shows whether they have expired.

        Parents of shards of the first listing are older than capture and do not count; those shards
        are known already.
        """
        ids = {shard.shard_id for shard in listed} | self._shards.keys()
        fresh = {p for s in listed if s.shard_id not in self._shards for p in s.parents}
        return [Shard(p, None, None, None) for p in sorted(fresh - ids)]

    def vouched(self) -> dict[str, int]:
        """Return what this run's last listing proves about unknown shards; {}: nothing new.

        A stream that was disabled proves nothing about later writes, even when it is enabled again.
        And listings are late: AWS documents that children may be missing, without a bound, so the
        bound is a setting. If a shard has ended, by the listing or by reading it, and has no listed
        child, the listing is late in spite of the setting, and only the time in which the shard was
        open counts. Requested children prove only that they exist: of two, one may be late.
        """
        if not self._listing_us or not self.enabled or self._stream.off:
            return {}
        ends = [self._read_before_end_us(s) for s in self._ended() - self._parents]
        lag_us, margin_us = self._lag_us, self._log.margin_us
        return gaps.proven_times(
            self._state, self._listing_us, lag_us, margin_us, min(ends, default=None)
        )

    def _read_before_end_us(self, shard_id: str) -> int:
        """A time, in µs, at which an ended shard was open, 0: unknown.

        The time of its last record, or of the last empty read while it was open. For an ended
        shard, Kinesis reports only the present age of that record.
        """
        return self._shards[shard_id].read_to_us if self._source.reading.in_order else 0

    def forgotten(self) -> Iterable[str]:
        """Shards that ended long ago and are not listed any more; their children hold their depth.

        A listing may lack a shard for a while, so one that could still be listed is kept.
        """
        if not self._listing_us:
            return
        listed = {shard.shard_id for shard in self._listed}
        old_us = self._log.now_us() - 2 * self._stream.retention_us
        for shard_id, shard in self._state.shards.items():
            if shard.status != "reading" and shard_id not in listed and shard.read_to_us < old_us:
                yield shard_id
