"""Storage of the capture log: reading its state, and racing for the next entry."""

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
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.names import TablePaths, entry_number
from cdc_pipeline.lake.storage.store import Store

_SUMMARY_EVERY = 100
_SUMMARIES_KEPT = 3
# A summary holds every live object (some 500 bytes each). Its cost is spread over so many entries
# that each bears no more than these; a reader then has about 1 % as many entries to read behind it.
_OBJECTS_PER_ENTRY = 100


Parts = Mapping[str, Any]
"""What an entry records: fields of `Entry` by name, without its number, time and owner."""


def new_nonce() -> str:
    """Tells this attempt at an entry from every other one."""
    return secrets.token_hex(8)


def this_owner() -> str:
    """Who writes, for people: host, process and, in Dagster, run."""
    run = os.environ.get("DAGSTER_RUN_ID") or ""
    return f"{socket.gethostname()}:{os.getpid()}" + (f":{run[:8]}" if run else "")


class CaptureLog:
    """The capture log of one table in one lake.

    `margin_us`: how far `clock` may be off AWS's. No time of the one is compared with a time of the
    other without it.
    """

    def __init__(
        self,
        store: Store,
        paths: TablePaths,
        clock: Callable[[], float] = time.time,
        margin_us: int = 0,
    ) -> None:
        self.store = store
        self.paths = paths
        self.clock = clock
        self.margin_us = margin_us

    def load(self) -> LogState:
        """The state after the newest entry: the newest summary and the entries behind it."""
        state = self._newest_summary()
        self.catch_up(state)
        return state

    def catch_up(self, state: LogState) -> list[Entry]:
        """Apply entries that appeared since `state` was read; returns them."""
        found = list(self.store.list(self.paths.entries, after=self.paths.entry(state.n)))
        if not found:
            return []
        with ThreadPoolExecutor(16) as pool:
            entries = list(pool.map(self._read_entry, found))
        for entry in entries:
            state.apply(entry)
        return entries

    def entries_since(self, state: LogState, day: date) -> Iterator[Entry]:
        """Every entry up to `state` that was written on a day or later, in order.

        Entries are never removed, so this finds what the state has forgotten.
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
        """Whether an object is a quarantined one, also one that the state has only summed up."""
        n = entry_number(key)
        if key in state.quarantined or n is None or not 0 < n <= state.summed_to:
            return key in state.quarantined
        return any(found.key == key for found in self._read_entry(self.paths.entry(n)).quarantined)

    def commit(
        self,
        state: LogState,
        step: Callable[[LogState], Parts | None],
        *,
        overtaken: Callable[[list[Entry]], object] = lambda _: None,
    ) -> bool:
        """Append the entry that `step` makes of the state; False if `step` gives None.

        When another writer takes the number, the state catches up, `overtaken` gets the entries
        that came in between (it may raise), and `step` decides again. `state` includes the entry
        afterwards. This is the one way to append to a capture log.
        """
        while (parts := step(state)) is not None:
            entry = Entry(
                **{"n": 0, "nonce": new_nonce(), "owner": this_owner(), "at_us": 0, **parts}
            )
            if self.append(state, entry):
                return True
            overtaken(self.catch_up(state))
        return False

    def append(self, state: LogState, entry: Entry) -> bool:
        """Try once to make `entry` the next one; on success `state` includes it. See `commit`.

        When the store says the entry is there already, it is read back: its own nonce means that
        an earlier attempt had won and only the answer was lost.
        """
        entry = replace(entry, n=state.n + 1, at_us=self.now_us())
        key = self.paths.entry(entry.n)
        if not self.store.create(key, entry.to_json().encode()):
            standing = self._read_entry(key)
            if standing.nonce != entry.nonce:
                return False
        state.apply(entry)
        if entry.n % _summary_interval(len(state.objects)) == 0:
            self._summarise(state)
        return True

    def now_us(self) -> int:
        """The writer's clock in µs since the epoch."""
        return int(self.clock() * 1_000_000)

    def not_yet_us(self) -> int:
        """A time that has not come by AWS's clock: what has been written by now is older."""
        return self.now_us() + self.margin_us

    def _read_entry(self, key: str) -> Entry:
        data = self.store.read(key)
        if data is None:
            raise LakeError(f"capture log entry {key} vanished while it was read")
        return Entry.from_json(data, key)

    def _newest_summary(self) -> LogState:
        for key in reversed(list(self.store.list(self.paths.summaries))):
            data = self.store.read(key)
            if data is not None:
                return LogState.from_json(data, key)
        return LogState()

    def _summarise(self, state: LogState) -> None:
        """Entries are never removed, so a summary is only speed: old ones may go at any time."""
        self.store.create(self.paths.summary(state.n), state.to_json().encode())
        keys = list(self.store.list(self.paths.summaries))
        self.store.delete(keys[:-_SUMMARIES_KEPT])


def _summary_interval(objects: int) -> int:
    """After how many entries a summary of so many objects is due; in powers of two.

    So whoever writes an entry knows whether its summary is due without knowing the last one.
    """
    interval = _SUMMARY_EVERY
    while interval * _OBJECTS_PER_ENTRY < objects:
        interval *= 2
    return interval


def remove_orphans(store: Store, state: LogState, folders: list[str]) -> list[str]:
    """Delete objects in `folders` that no log entry names though their entry stands.

    An object is written before its entry `n`; once entry `n` exists and does not name the
    object, nothing ever will. Objects numbered beyond `state.n` may still be on their way.
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
