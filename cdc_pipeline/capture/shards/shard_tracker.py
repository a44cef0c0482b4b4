"""A stream's shards during a capture run: which there are, may be read, or may be missing.

A listing of a stream has all shards of a day, of a large table tens of thousands. So a large stream
is listed whole every ten minutes, and between listings the children of shards that end are asked
for; of a small one both take a single request. What proves that nothing is missing are the whole
listings (`continuity.vouched`).
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
_CHILD_ASKED = 5
_CHILDREN_AT_ONCE = 10
"""As AWS's own consumers: the children of a shard that has ended are asked for five times, with
pauses that double, and then left to the next run. AWS allows ten requests a second."""


@dataclass
class _Childless:
    """A shard that has ended and shows no child: how often it was asked for, when it is again."""

    asked: int = 0
    due: float = 0

    def ask_later(self, now: float) -> None:
        self.due = now + _CHILD_WAIT_SECONDS * 2**self.asked
        self.asked += 1


def _unlisted(shard: ShardState) -> Shard:
    """A shard that the log knows: only reading it tells whether it is gone, or has ended."""
    return Shard(shard.shard_id, shard.parent_id, None, None, shard.adjacent_id)


class Lineage:
    """`state` is the log as its run knows it, `shards` where they stand: both move with the run.

    `enabled`: the table writes to the stream, as far as listings tell. `stream_began_us`: nothing
    in it is older, 0: unknown. `next_listing_us`: then it is due for a whole listing.
    """

    def __init__(
        self,
        log: CaptureLog,
        source: Source,
        state: LogState,
        shards: dict[str, ShardState],
        lag_us: int,
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
        self._listed: list[Shard] = []
        # When this run listed the stream, 0: not yet.
        self._listing_us = 0
        # Shards that others follow, and ended ones that none follows yet.
        self._parents: set[str] = set()
        self._childless: dict[str, _Childless] = {}
        # Whether the server gives the children of one shard when asked for them.
        self._filters = True

    def begin(self, *, is_on: bool) -> None:
        """Find the shards to read: in the log, if the stream was listed lately, or by listing it.

        Raises what `discover` does. `is_on`: where that is unknown, only a listing tells.
        """
        state, now_us, margin_us = self._state, self._log.now_us(), self._log.margin_us
        self._parents = {
            p for s in state.shards.values() for p in (s.parent_id, s.adjacent_id) if p
        }
        lately = gaps.is_listed_lately(state, self._source.reading, self._lag_us, now_us)
        if not is_on or not lately or not gaps.is_lineage_known(state, margin_us, now_us):
            self.discover()
            return
        self._listed = [_unlisted(s) for s in state.shards.values() if s.status == "reading"]
        self.next_listing_us = state.discovered_us + self._lag_us + self._serves_us()
        oldest_us = now_us - self._stream.retention_us
        for shard in state.shards.values():
            is_recent = shard.status == "finished" and shard.read_to_us > oldest_us
            if is_recent and shard.shard_id not in self._parents:
                self._childless[shard.shard_id] = _Childless(_CHILD_ASKED - 1)

    def _serves_us(self) -> int:
        """How long a listing serves within a run."""
        seconds = self._source.reading.listing_seconds(len(self._shards))
        return int(max(seconds, _DISCOVERY_SECONDS) * 1_000_000)

    def note_ended(self, read: Iterable[str]) -> None:
        """Look for children of those of the shards just read that have ended."""
        self._childless |= {s: _Childless() for s in read if self._is_done(s)}

    def _is_done(self, shard_id: str) -> bool:
        shard = self._shards.get(shard_id)
        return shard is not None and shard.status != "reading"

    def readable(self) -> list[Shard]:
        """Shards that may be read now: parents come before children."""
        return readable(self._listed, self._is_done, self._shards.__contains__)

    def follow_ended(self) -> None:
        """Find the children of shards that have ended, by whichever takes fewer requests.

        Children that do not show yet are asked for again, with pauses. Raises what `discover` does.
        """
        waiting = {s: w for s, w in self._childless.items() if s not in self._parents}
        waiting = {s: w for s, w in waiting.items() if w.asked < _CHILD_ASKED}
        self._childless = waiting
        fresh = [s for s, w in waiting.items() if not w.asked]
        requests = self._source.reading.listing_seconds(len(self._shards))
        lost = [s for s in fresh if self._shards[s].status == "lost"]
        if fresh and (lost or not self._filters or len(fresh) >= requests):
            self.discover()
            return
        now = time.monotonic()
        due = [s for s, w in waiting.items() if w.due <= now]
        children: list[Shard] = []
        for shard_id in due[:_CHILDREN_AT_ONCE]:
            found = self._source.shards.children(self._source.arn, shard_id)
            if found is None:
                self._filters = False
                self.discover()
                return
            waiting[shard_id].ask_later(now)
            children += found
        if children:
            ids = {shard.shard_id for shard in self._listed}
            self._listed += [child for child in children if child.shard_id not in ids]
            self._take_up(children)

    def wait(self, sleep: Callable[[float], object]) -> bool:
        """With nothing else to do, wait until children are to be asked for again; whether any."""
        left = [w for s, w in self._childless.items() if s not in self._parents]
        left = [w for w in left if w.asked < _CHILD_ASKED]
        if not left:
            return False
        soonest = min(w.due for w in left)
        pause = soonest - time.monotonic()
        if pause > 0:
            sleep(pause)
        for asked in left:
            asked.due = 0 if asked.due <= soonest else asked.due
        return True

    def discover(self) -> None:
        """List the stream's shards and take up new ones.

        A listing may leave out what is younger than `lag_us`; only what is older than that counts
        towards the watermark. Raises `SourceError`, and
        `ShardGoneError` when the stream no longer exists.
        """
        started_us = self._log.now_us()
        found = self._source.shards.describe(self._source.arn)
        if found.created_us != self._stream.created_us:
            raise ShardGoneError(f"stream {found.arn} was deleted and made again")
        self._take_up(found.shards + self._unseen_parents(found.shards))
        listed = {shard.shard_id for shard in found.shards}
        # A listing may leave a shard out for a while; only reading it tells whether it is gone.
        missing = [s for s in self._shards.values() if s.status == "reading"]
        self._listed = found.shards + [_unlisted(s) for s in missing if s.shard_id not in listed]
        self._listing_us, self.enabled = started_us, found.status == "ENABLED"
        self.next_listing_us = started_us + self._serves_us()
        self.stream_began_us = found.began_us
        self.retention_hours = found.retention_hours
        # What the listing lacks is asked for by itself, again and again if it ended just now.
        waiting, self._childless = self._childless, {}
        for shard_id in self._ended() - self._parents if self._asks_children() else ():
            known = self._state.shards.get(shard_id)
            is_old = known is not None and known.status != "reading"
            asked = waiting.get(shard_id) or _Childless(_CHILD_ASKED - 1 if is_old else 0)
            self._childless[shard_id] = replace(asked, asked=max(asked.asked, 1))

    def _asks_children(self) -> bool:
        """Whether asking for children brings more than listings: the stream goes on, for one."""
        going_on = self.enabled and not self._stream.off
        return going_on and self._filters and self._source.reading.in_order

    def _ended(self) -> set[str]:
        """Listed shards that have ended, by the listing or by our reading."""
        return {s.shard_id for s in self._listed if not s.is_open or self._is_done(s.shard_id)}

    def _take_up(self, shards: list[Shard]) -> None:
        """Know shards from now on, those that were not known yet."""
        levels = depths(shards, {s.shard_id: s.depth for s in self._shards.values()})
        for shard in shards:
            if shard.shard_id not in self._shards:
                self._shards[shard.shard_id] = ShardState(
                    shard.shard_id,
                    shard.parent_id,
                    levels[shard.shard_id],
                    # It was in no listing yet, so it is younger than what those vouch for.
                    read_to_us=self._state.discovered_us,
                    adjacent_id=shard.adjacent_id,
                )
            self._parents.update(shard.parents)

    def _unseen_parents(self, listed: list[Shard]) -> list[Shard]:
        """Parents that no listing ever showed: reading them tells whether they have expired.

        Those of the stream's first listing are not ours to miss; its shards are known already.
        """
        ids = {shard.shard_id for shard in listed} | self._shards.keys()
        fresh = {p for s in listed if s.shard_id not in self._shards for p in s.parents}
        return [Shard(p, None, None, None) for p in sorted(fresh - ids)]

    def vouched(self) -> dict[str, int]:
        """What this run's last listing says about unknown shards; nothing: no news.

        A stream that was turned off says nothing of what is written since, even when it is on
        again. And listings are late: AWS documents that children may be missing, and no bound for
        it, so ours is a setting. If a shard has ended, by the listing or by our reading, and shows
        no child, this one is late whatever the setting says, and only what was written while it
        was open counts. Children that were asked for prove no more than that they are there: of two
        one may be late.
        """
        if not self._listing_us or not self.enabled or self._stream.off:
            return {}
        ends = [self._read_before_end_us(s) for s in self._ended() - self._parents]
        lag_us, margin_us = self._lag_us, self._log.margin_us
        return gaps.vouched(
            self._state, self._listing_us, lag_us, margin_us, min(ends, default=None)
        )

    def _read_before_end_us(self, shard_id: str) -> int:
        """A time at which an ended shard was open, 0: unknown.

        That of its last record, or when it was last seen empty and open. What Kinesis says of an
        ended shard is only how old that record is now.
        """
        return self._shards[shard_id].read_to_us if self._source.reading.in_order else 0

    def forgotten(self) -> Iterable[str]:
        """Shards that ended long ago and are not listed any more; their children know their depth.

        A listing may leave a shard out for a while, so one that could still be listed is kept.
        """
        if not self._listing_us:
            return
        listed = {shard.shard_id for shard in self._listed}
        old_us = self._log.now_us() - 2 * self._stream.retention_us
        for shard_id, shard in self._state.shards.items():
            if shard.status != "reading" and shard_id not in listed and shard.read_to_us < old_us:
                yield shard_id
