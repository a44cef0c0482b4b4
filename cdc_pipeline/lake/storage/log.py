"""Storage of the capture log: reads the state, appends entries with optimistic concurrency."""

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
from cdc_pipeline.core.log.json_format import (
    entry_from_json,
    entry_to_json,
    state_from_json,
    state_to_json,
)
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.names import TablePaths, entry_number
from cdc_pipeline.lake.storage.store import Store

_SUMMARY_EVERY = 100
_SUMMARIES_KEPT = 3
# A summary holds every live object (some 500 bytes each). The interval between summaries grows so
# that at most this many objects fall to one entry; a reader then reads, after the summary, about
# 1 % as many entries as there are objects.
_OBJECTS_PER_ENTRY = 100


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
    the two are compared.
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
        """Return the state after the newest entry: the newest summary and the entries after it."""
        state = self._newest_summary()
        self.catch_up(state)
        return state

    def catch_up(self, state: LogState) -> list[Entry]:
        """Apply entries written since `state` was read; return them."""
        keys = list(self.store.list(self.paths.entries, after=self.paths.entry(state.n)))
        if not keys:
            return []
        with ThreadPoolExecutor(16) as pool:
            entries = list(pool.map(self._read_entry, keys))
        for entry in entries:
            state.apply(entry)
        return entries

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
    ) -> bool:
        """Append the entry with the parts that `step` returns; False if `step` returns None.

        If another writer takes the entry number first, `state` catches up, `overtaken` gets the
        entries in between (it may raise), and `step` decides again. Afterwards `state` includes the
        entry. The only way to append to a capture log.
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
        """Try once to append `entry`; on success `state` includes it. See `commit`.

        If the entry exists already, it is read back: the same nonce means that an earlier attempt
        of this writer succeeded and only the response was lost.
        """
        entry = replace(entry, n=state.n + 1, at_us=self.now_us())
        key = self.paths.entry(entry.n)
        if not self.store.create(key, entry_to_json(entry).encode()):
            existing = self._read_entry(key)
            if existing.nonce != entry.nonce:
                return False
        state.apply(entry)
        if entry.n % _summary_interval(len(state.objects)) == 0:
            self._summarise(state)
        return True

    def now_us(self) -> int:
        """Return the time of the writer's clock, in µs since the epoch."""
        return int(self.clock() * 1_000_000)

    def not_yet_us(self) -> int:
        """Return a time still ahead on AWS's clock, in µs; everything written by now is older."""
        return self.now_us() + self.margin_us

    def _read_entry(self, key: str) -> Entry:
        data = self.store.read(key)
        if data is None:
            raise LakeError(f"capture log entry {key} vanished while it was read")
        return entry_from_json(data, key)

    def _newest_summary(self) -> LogState:
        for key in reversed(list(self.store.list(self.paths.summaries))):
            data = self.store.read(key)
            if data is not None:
                return state_from_json(data, key)
        return LogState()

    def _summarise(self, state: LogState) -> None:
        """Write a summary, delete old ones. Entries stay, so summaries only speed up reading."""
        self.store.create(self.paths.summary(state.n), state_to_json(state).encode())
        keys = list(self.store.list(self.paths.summaries))
        self.store.delete(keys[:-_SUMMARIES_KEPT])


def _summary_interval(objects: int) -> int:
    """Return the number of entries between summaries of this many objects, doubled as they grow.

    With these steps the writer of an entry can decide that a summary is due without reading the
    last one.
    """
    interval = _SUMMARY_EVERY
    while interval * _OBJECTS_PER_ENTRY < objects:
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
