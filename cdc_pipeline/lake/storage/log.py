"""Storage of the capture log: reads the state, appends entries with optimistic concurrency.

A log at rest is opened by three reads and no listing: the heartbeat, the newest entry and its
missing successor. A process that has not seen the log reads the newest summary, too, and the
entries after it; the heartbeat has its number. Only logs without a heartbeat are listed.
"""

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.heartbeat import Heartbeat
from cdc_pipeline.core.log.json_format import (
    entry_from_json,
    entry_to_json,
    state_from_json,
    state_to_json,
)
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.names import TablePaths, entry_number
from cdc_pipeline.lake.storage.log_memory import MEMORY
from cdc_pipeline.lake.storage.residence import Residence
from cdc_pipeline.lake.storage.store import Store

_SUMMARY_EVERY = 10
_SUMMARIES_KEPT = 3
# A summary holds every live object and shard (some 500 bytes each). The interval between summaries
# grows so that at most this many of them fall to one entry; a reader then reads, after the summary,
# about 1 % as many entries.
_PARTS_PER_ENTRY = 100
# An idle log gets a summary of its newest entry with this heartbeat: later readers read no entry
# before it.
_SUMMARY_AT_BEAT = 5
_ENTRY_EVERY_US = 3 * 3_600_000_000
"""Progress of idle captures becomes an entry every three hours: older versions read no heartbeat,
and it may be lost. What is known to be read then ends three hours earlier: less than the four at
which a check warns, and far less than any retention."""
_LOOK_SECONDS = 5.0
_EVER_SECONDS = 1e12
"""For a state that was not outdated since, however old it is."""

Parts = Mapping[str, Any]
"""Fields of an `Entry` by name, without its number, time and owner."""


def new_nonce() -> str:
    """Return a random id of one attempt to write an entry."""
    return secrets.token_hex(8)


def this_owner() -> str:
    """Return the writer, as text for people: host, process and, in Dagster, run."""
    run = os.environ.get("DAGSTER_RUN_ID") or ""
    return f"{socket.gethostname()}:{os.getpid()}" + (f":{run[:8]}" if run else "")


class CaptureLog:
    """The capture log of one table in one lake.

    `margin_us`: bound on the difference between `clock` and AWS's clock, applied wherever times of
    the two are compared. `residence`: that of a process that stays.
    """

    def __init__(
        self,
        store: Store,
        paths: TablePaths,
        clock: Callable[[], float] = time.time,
        margin_us: int = 0,
        residence: Residence | None = None,
    ) -> None:
        self.store = store
        self.paths = paths
        self.clock = clock
        self.margin_us = margin_us
        self.residence = residence

    def load(self) -> LogState:
        """Return the state after the newest entry, with the progress of the heartbeat."""
        beat = self._read_heartbeat()
        state = self._remembered() or (beat and self._announced(beat)) or self._listed()
        self._read_on(state)
        self._show(state, beat)
        MEMORY.remember(self._address, state)
        if self.residence:
            self.residence.loaded(self._address)
        return state

    def look(self) -> LogState:
        """Return the state that this process loaded within the last seconds, or load it.

        For the parts of one run, and for sensors that tick together. What this process has written
        since is in it; what others have written may be missing, as after any load. A process that
        stays looks as seldom as its `residence` says.
        """
        with MEMORY.looking(self._address):
            seconds = _LOOK_SECONDS
            if self.residence:
                seconds = _EVER_SECONDS if self.residence.knows(self._address) else 0
            return MEMORY.recall(self._address, seconds=seconds) or self.load()

    def is_tidy(self) -> bool:
        """Whether a run of this process has looked for what killed ones left; from now on it has.

        What is left by others later is found once a day.
        """
        return self.residence is not None and self.residence.is_tidy(self._address)

    def doubt(self) -> None:
        """Begin anew, as a new process would: a run of this one has ended with an error."""
        MEMORY.forget(self._address)
        if self.residence:
            self.residence.forget(self._address)

    @property
    def owner(self) -> str:
        """The writer, as in an entry."""
        return self.residence.owner if self.residence else this_owner()

    def catch_up(self, state: LogState) -> list[Entry]:
        """Apply what was written since `state` was read; return the new entries."""
        entries = self._read_on(state)
        if entries:
            MEMORY.outdate(self._address)
        self._show(state, self._read_heartbeat())
        return entries

    def _show(self, state: LogState, beat: Heartbeat | None) -> None:
        if beat is not None and beat.holds_for(state.n, state.digest):
            state.set_heartbeat(beat)

    def _read_heartbeat(self) -> Heartbeat | None:
        data = self.store.read(self.paths.heartbeat)
        return None if data is None else Heartbeat.from_json(data)

    @property
    def _address(self) -> str:
        return self.store.uri(self.paths.entries)

    def _remembered(self) -> LogState | None:
        """Recall the state that this process knows; None if its log is not the stored one."""
        state = MEMORY.recall(self._address)
        if state is None or self._digest(state.n) == state.digest:
            return state
        MEMORY.forget(self._address)
        return None

    def _announced(self, beat: Heartbeat) -> LogState | None:
        """Read the state that a heartbeat follows; None if the log is not as it says."""
        state = LogState()
        if beat.summary:
            key = self.paths.summary(beat.summary)
            data = self.store.read(key)
            if data is None:
                return None
            state = state_from_json(data, key)
        state.summary = beat.summary
        texts = self._read_all([self.paths.entry(n) for n in range(state.n + 1, beat.n + 1)])
        for key, text in texts:
            if text is None:
                return None
            self._apply(state, key, text)
        if not texts:
            state.digest = self._digest(state.n)
        return state if beat.holds_for(state.n, state.digest) else None

    def _listed(self) -> LogState:
        """Read the newest summary and the listed entries after it."""
        state = self._newest_summary()
        summary = state.n
        self._apply_listed(state)
        state.summary = summary
        if state.n and not state.digest:
            state.digest = self._digest(state.n)
        return state

    def _read_on(self, state: LogState) -> list[Entry]:
        """Apply the entries after `state`: one is read, and if it exists, the others are listed."""
        key = self.paths.entry(state.n + 1)
        text = self.store.read(key)
        if text is None:
            return []
        return [self._apply(state, key, text), *self._apply_listed(state)]

    def _apply_listed(self, state: LogState) -> list[Entry]:
        keys = list(self.store.list(self.paths.entries, after=self.paths.entry(state.n)))
        return [self._apply(state, key, text) for key, text in self._read_all(keys)]

    def _read_all(self, keys: list[str]) -> list[tuple[str, bytes | None]]:
        if len(keys) < 2:
            return [(key, self.store.read(key)) for key in keys]
        with ThreadPoolExecutor(16) as pool:
            return list(zip(keys, pool.map(self.store.read, keys), strict=True))

    def _apply(self, state: LogState, key: str, text: bytes | None) -> Entry:
        entry = _parsed(key, text)
        state.apply(entry)
        state.digest = _digest_of(text or b"")
        if _is_summary_due(state):
            state.summary = state.n  # its writer's next step; without it, the log is listed
        return entry

    def _digest(self, n: int) -> str:
        text = self.store.read(self.paths.entry(n))
        return "" if text is None else _digest_of(text)

    def entries_since(self, state: LogState, day: date) -> Iterator[Entry]:
        """Yield entries written on `day` or later, up to `state`, in order.

        Entries are never removed, so this includes facts that the state no longer holds.
        """
        since_us = int(datetime.combine(day, datetime.min.time(), UTC).timestamp() * 1_000_000)
        before, last = 0, state.n
        while before < last:
            middle = (before + last) // 2
            if self._read_entry(self.paths.entry(middle + 1)).at_us < since_us:
                before = middle + 1
            else:
                last = middle
        with ThreadPoolExecutor(16) as pool:
            keys = (self.paths.entry(n + 1) for n in range(before, state.n))
            yield from pool.map(self._read_entry, keys)

    def names_quarantined(self, state: LogState, key: str) -> bool:
        """Whether an entry names this quarantined object; reads entries the state only sums up."""
        n = entry_number(key)
        if key in state.quarantined or n is None or not 0 < n <= state.summed_to:
            return key in state.quarantined
        entry = self._read_entry(self.paths.entry(n))
        return any(quarantined.key == key for quarantined in entry.quarantined)

    def commit(
        self,
        state: LogState,
        step: Callable[[LogState], Parts | None],
        *,
        overtaken: Callable[[list[Entry]], object] = lambda _: None,
        may_rest: bool = False,
    ) -> bool:
        """Append the entry with the parts that `step` returns; False if `step` returns None.

        If another writer takes the entry number first, `state` catches up, `overtaken` gets the
        entries in between (it may raise), and `step` decides again. Afterwards `state` includes the
        entry. The only way to append to a capture log. With `may_rest`, parts that are nothing but
        progress are no entry, unless the last one is old: `state` has them, and `rest`
        writes them to the heartbeat.
        """
        while (parts := step(state)) is not None:
            if may_rest and self._is_restful(state, parts):
                state.beat(parts, at_us=self.now_us(), owner=self.owner)
                return True
            entry = Entry(
                **{"n": 0, "nonce": new_nonce(), "owner": self.owner, "at_us": 0, **parts}
            )
            if self.append(state, entry):
                return True
            overtaken(self.catch_up(state))
        return False

    def _is_restful(self, state: LogState, parts: Parts) -> bool:
        age_us = self.now_us() - state.entry_us
        is_known = state.n > 0 and state.digest != ""
        return is_known and 0 <= age_us < _ENTRY_EVERY_US and state.is_progress(parts)

    def rest(self, state: LogState, *, clean: bool) -> None:
        """Overwrite the heartbeat with what `state` has of progress, and the present time.

        `clean`: the log has no unlogged objects up to here. The heartbeat of a log that went on
        meanwhile has no effect. A process that stays remembers it, and writes it less often.
        """
        if not state.n or not state.digest:
            return
        state.beat({}, at_us=self.now_us(), owner=self.owner, clean=clean)
        if self.residence and self.residence.may_pass_over(self._address):
            MEMORY.remember(self._address, state)
            return
        assert state.heartbeat is not None  # it was set just now
        beats = state.heartbeat.beats + 1
        if beats == _SUMMARY_AT_BEAT and state.summary < state.n:
            self._summarise(state)
        state.beat({}, beats=beats, summary=state.summary)
        self.store.write(self.paths.heartbeat, state.heartbeat.to_json().encode())
        MEMORY.remember(self._address, state)
        if self.residence:
            self.residence.rested(self._address)

    def append(self, state: LogState, entry: Entry) -> bool:
        """Try once to append `entry`; on success `state` includes it. See `commit`.

        If the entry exists already, it is read back: the same nonce means that an earlier attempt
        of this writer succeeded and only the response was lost.
        """
        entry = state.with_progress(replace(entry, n=state.n + 1, at_us=self.now_us()))
        key, text = self.paths.entry(entry.n), entry_to_json(entry).encode()
        self._require_end(entry.n)
        if not self.store.create(key, text):
            existing = self._read_entry(key)
            if existing.nonce != entry.nonce:
                return False
        self._apply(state, key, text)
        MEMORY.outdate(self._address)
        if _is_summary_due(state):
            self._summarise(state)
        return True

    def _require_end(self, n: int) -> None:
        """Raise `LakeError` if entry `n` is missing, not to be written yet: it has a successor.

        Readers of a log at rest do not list it, so they cannot see that an entry was deleted.
        """
        follower = self.paths.entry(n + 1)
        is_follower = self.store.read(follower) is not None
        if is_follower and self.store.read(self.paths.entry(n)) is None:
            raise LakeError(
                f"capture log: entry {n + 1} cannot follow entry {n - 1}: "
                f"{self.paths.entry(n)} is missing",
                fix="restore the deleted object, from a version of the bucket or a backup",
            )

    def now_us(self) -> int:
        """Return the time of the writer's clock, in µs since the epoch."""
        return int(self.clock() * 1_000_000)

    def not_yet_us(self) -> int:
        """Return a time still ahead on AWS's clock, in µs; everything written by now is older."""
        return self.now_us() + self.margin_us

    def _read_entry(self, key: str) -> Entry:
        return _parsed(key, self.store.read(key))

    def _newest_summary(self) -> LogState:
        for key in reversed(list(self.store.list(self.paths.summaries))):
            data = self.store.read(key)
            if data is not None:
                return state_from_json(data, key)
        return LogState()

    def _summarise(self, state: LogState) -> None:
        """Write a summary, delete old ones. Entries stay, so summaries only speed up reading."""
        self.store.create(self.paths.summary(state.n), state_to_json(state).encode())
        state.summary = state.n
        keys = list(self.store.list(self.paths.summaries))
        self.store.delete(keys[:-_SUMMARIES_KEPT])


def _parsed(key: str, text: bytes | None) -> Entry:
    if text is None:
        raise LakeError(f"capture log entry {key} vanished while it was read")
    return entry_from_json(text, key)


def _digest_of(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _is_summary_due(state: LogState) -> bool:
    return state.n % _summary_interval(len(state.objects) + len(state.shards)) == 0


def _summary_interval(parts: int) -> int:
    """Return the number of entries between summaries of so many objects and shards.

    It doubles as they grow.

    With these steps the writer of an entry can decide that a summary is due without reading the
    last one.
    """
    interval = _SUMMARY_EVERY
    while interval * _PARTS_PER_ENTRY < parts:
        interval *= 2
    return interval


def remove_orphans(store: Store, state: LogState, folders: list[str]) -> list[str]:
    """Delete objects in `folders` whose log entry exists and does not name them; return their keys.

    An object is written before its entry `n`; once entry `n` exists without naming it, no later
    entry will. Objects numbered above `state.n` may still get their entry.
    """
    orphans = [
        key
        for folder in folders
        for key in store.list(folder)
        if (n := entry_number(key)) is not None
        and n <= state.n
        and key not in state.objects
        and key not in state.replaced
        and not state.may_be_quarantined(key)
    ]
    store.delete(orphans)
    return orphans
