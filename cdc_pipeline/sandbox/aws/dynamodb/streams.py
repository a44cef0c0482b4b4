"""Corrections of the emulator's writes and streams: one hook per write, TTL records, sizes.

ministack 1.5.33 omits stream records of PartiQL writes and TTL deletes, reports SizeBytes 0, can
alias parts of items, counts a set in another order as a change, and searches a number key by its
spelling in the request. It answers every DynamoDB request on one event loop, so a hook here runs
between whole requests and needs no lock. Each replaced function is a module global that ministack
looks up at call time.
"""

import copy
import heapq
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from cdc_pipeline.sandbox.aws.dynamodb.journal import Change, Clock, Item, TableJournal, same

# AWS ignores TTL values older than five years: a wrong unit cannot empty a table
# (developer guide, "Using time to live").
_TTL_HORIZON_SECONDS = 5 * 365 * 24 * 3600
_TTL_IDENTITY = {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}


@dataclass(frozen=True, slots=True)
class _Write:
    table: dict[str, Any]
    key: tuple[Any, Any]
    old: Item | None
    new: Item | None

    @property
    def event_name(self) -> str:
        if self.new is None:
            return "REMOVE"
        return "INSERT" if self.old is None else "MODIFY"


class Writes:
    """Hook of every write of every table: journals it, tracks TTL, corrects its stream record.

    `journals`: journal by table id, only of tables with point-in-time recovery.
    """

    def __init__(self, dynamodb: Any, clock: Clock) -> None:
        self.journals: dict[str, TableJournal] = {}
        self.ttl = TtlQueue()
        self._dynamodb = dynamodb
        self._clock = clock
        self._micros = clock.tick()
        self._latest: _Write | None = None
        self._collected: list[_Write] | None = None
        self._in_transaction = False
        self._expiring = False

    @property
    def latest_micros(self) -> int:
        """Time of the last write in µs; records are emitted directly after their write."""
        return self._micros

    def install(self) -> None:
        """Replace the emulator's functions; once per process."""
        module = self._dynamodb
        module._set_item = self._storing(module._set_item)
        module._remove_item = self._removing(module._remove_item)
        module._build_change_record = self._building(module._build_change_record)
        module._emit_stream_event = self._comparing(module._emit_stream_event)
        for name in ("_partiql_insert", "_partiql_update", "_partiql_delete"):
            setattr(module, name, self._emitting(getattr(module, name)))
        module._execute_transaction = self._transacting(module._execute_transaction)
        # ministack checks and measures each number up to five times per write.
        for name in ("_number_error", "_number_size_bytes", "_ddb_canonicalize_number"):
            setattr(module, name, _remembering(getattr(module, name)))
        module._extract_key_val = _naming(module._extract_key_val, module._ddb_canonicalize_number)

    def clear(self) -> None:
        """Remove all data, as the emulator's reset does."""
        self.journals.clear()
        self.ttl.clear()

    def expire(self, table: dict[str, Any], key: tuple[Any, Any]) -> None:
        """Delete one item as DynamoDB's TTL does: a REMOVE by the service."""
        self._expiring = True
        try:
            old = self._dynamodb._remove_item(table, *key)
            if old is not None:
                self._dynamodb._emit_stream_event(table["TableName"], "REMOVE", old, None)
        finally:
            self._expiring = False

    def _storing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_item(table: dict[str, Any], pk: Any, sk: Any, item: Item) -> Item | None:
            # A copy per version, never changed in place: table, records and journal can share it,
            # and `SET a = :v, b = :v` cannot make a and b share one list.
            old = table["items"].get(pk, {}).get(sk)
            # Nothing changed: the present version remains, with its sets in their order.
            stored = old if old is not None and same(old, item) else _isolated(item)
            original(table, pk, sk, stored)
            self._seen(_Write(table, (pk, sk), old, stored))
            return old

        return set_item

    def _removing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def remove_item(table: dict[str, Any], pk: Any, sk: Any) -> Item | None:
            old = original(table, pk, sk)
            if old is not None:
                self._seen(_Write(table, (pk, sk), old, None))
            return old

        return remove_item

    def _seen(self, write: _Write) -> None:
        if self._collected is not None:
            self._collected.append(write)
        if not self._in_transaction:
            self._record(write)

    def _record(self, write: _Write) -> None:
        self._micros = self._clock.tick()
        self._latest = write
        if write.old == write.new:
            return
        journal = self.journals.get(write.table.get("TableId", ""))
        if journal is not None:
            journal.changes.append(Change(self._micros, write.key, write.old, write.new))
        if write.new is not None:
            self.ttl.watch(write.table, write.key, write.new)

    def _building(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def build_change_record(
            table: dict[str, Any], name: str, old: Item | None, new: Item | None, view: str
        ) -> dict[str, Any]:
            latest = self._latest
            if new is not None and latest is not None and latest.table is table:
                # Emitted directly after storing: keep one copy of the version, not two.
                new = latest.new
            record = original(table, name, old, new, view)
            data = record["dynamodb"]
            data["ApproximateCreationDateTime"] = self._micros // 1_000_000
            size = self._dynamodb._item_size_bytes
            parts = (data["Keys"], data.get("NewImage"), data.get("OldImage"))
            data["SizeBytes"] = sum(size(part) for part in parts if part)
            if self._expiring:
                record["userIdentity"] = dict(_TTL_IDENTITY)
            return record

        return build_change_record

    def _comparing(self, original: Callable[..., None]) -> Callable[..., None]:
        def emit(
            table_name: str, event_name: str, old: Item | None, new: Item | None, **settings: Any
        ) -> None:
            # ministack omits the record if both are equal.
            unchanged = old is not None and new is not None and same(old, new)
            original(table_name, event_name, old, old if unchanged else new, **settings)

        return emit

    def _emitting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def statement(table: dict[str, Any], *arguments: Any) -> Any:
            with self._collecting() as writes:
                response = original(table, *arguments)
            if not self._in_transaction:
                self._emit(writes)
            return response

        return statement

    def _transacting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def execute_transaction(data: dict[str, Any]) -> Any:
            # ministack applies the statements one by one and restores the tables if one fails: the
            # journal must wait for the outcome.
            with self._collecting() as writes:
                self._in_transaction = True
                try:
                    response = original(data)
                finally:
                    self._in_transaction = False
            if response[0] == 200:
                for write in writes:
                    self._record(write)
                    self._emit([write])
            return response

        return execute_transaction

    @contextmanager
    def _collecting(self) -> Iterator[list[_Write]]:
        outer = self._collected
        self._collected = writes = []
        try:
            yield writes
        finally:
            self._collected = outer
            if outer is not None:
                outer.extend(writes)

    def _emit(self, writes: list[_Write]) -> None:
        for write in writes:
            self._dynamodb._emit_stream_event(
                write.table["TableName"], write.event_name, write.old, write.new
            )


class TtlQueue:
    """Expiry times of items, so that finding expired ones needs no scan of a table."""

    def __init__(self) -> None:
        self._attributes: dict[str, str] = {}
        self._heaps: dict[str, list[tuple[Decimal, Any, Any]]] = {}

    def clear(self) -> None:
        """Remove all tables."""
        self._attributes.clear()
        self._heaps.clear()

    def configure(self, table: dict[str, Any], attribute: str | None) -> None:
        """Track `attribute` of a table, its present items included; None: stop."""
        table_id = table.get("TableId", "")
        self._attributes.pop(table_id, None)
        self._heaps.pop(table_id, None)
        if attribute is None:
            return
        self._attributes[table_id] = attribute
        self._heaps[table_id] = []
        for pk, partition in table["items"].items():
            for sk, item in partition.items():
                self.watch(table, (pk, sk), item)

    def watch(self, table: dict[str, Any], key: tuple[Any, Any], item: Item) -> None:
        """Record the item's expiry, if it has one."""
        attribute = self._attributes.get(table.get("TableId", ""))
        if attribute is not None:
            expiry = _expiry(item, attribute)
            if expiry is not None:
                # str: the heap compares keys of equal expiry, which may differ in type.
                heapq.heappush(self._heaps[table["TableId"]], (expiry, str(key), key))

    def expired(self, table: dict[str, Any], now_seconds: float) -> list[tuple[Any, Any]]:
        """Return the keys of expired items; each is returned once."""
        attribute = self._attributes.get(table.get("TableId", ""))
        heap = self._heaps.get(table.get("TableId", ""), [])
        keys = []
        while attribute is not None and heap and heap[0][0] <= now_seconds:
            expiry, _, key = heapq.heappop(heap)
            item = table["items"].get(key[0], {}).get(key[1])
            # The item may have been deleted or have another expiry since it was recorded.
            if item is not None and _expiry(item, attribute) == expiry:
                too_old = expiry < now_seconds - _TTL_HORIZON_SECONDS
                keys += [] if too_old else [key]
        return list(dict.fromkeys(keys))


def own_ttl(dynamodb: Any, writes: Writes) -> Callable[[float], None]:
    """Replace the emulator's TTL; return the function that deletes items expired by a time.

    ministack's own reaper is a thread that starts at import and deletes without a record; it
    iterates over `all_items` of the settings, which is empty for it from now on.
    """
    settings = dynamodb._ttl_settings

    class OwnSettings(type(settings)):
        __slots__ = ()

        def all_items(self) -> list[Any]:
            return []

    own = OwnSettings()
    own.update(settings)
    dynamodb._ttl_settings = own
    update_ttl = dynamodb._update_ttl

    def update(data: dict[str, Any]) -> Any:
        response = update_ttl(data)
        if response[0] == 200:
            name = dynamodb._normalize_table_name(data.get("TableName"))
            setting = own[name]
            enabled = setting["TimeToLiveStatus"] == "ENABLED"
            writes.ttl.configure(
                dynamodb._tables[name], setting["AttributeName"] if enabled else None
            )
        return response

    dynamodb._update_ttl = update

    def expire_due(now_seconds: float) -> None:
        from ministack.core.responses import request_scope

        for (account, region, _), table in dynamodb._tables.all_items():
            for key in writes.ttl.expired(table, now_seconds):
                with request_scope(account, region):
                    writes.expire(table, key)

    return expire_due


def _naming(
    original: Callable[[Any], Any], canonical: Callable[[str], str | None]
) -> Callable[[Any], Any]:
    """Return the lookup value of a key attribute: 1E2 and 100.0 are the key of the item 100."""

    def key_value(attribute: Any) -> Any:
        value = original(attribute)
        if isinstance(attribute, dict) and "N" in attribute and isinstance(value, str):
            return canonical(value) or value
        return value

    return key_value


def _remembering(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Cache a pure function of the text of a number; other values are not cached."""
    cached = lru_cache(maxsize=100_000)(function)

    def call(text: Any) -> Any:
        return cached(text) if type(text) is str else function(text)

    return call


def _expiry(item: Item, attribute: str) -> Decimal | None:
    """Return the item's expiry in epoch seconds; only attributes of type N count."""
    number = item.get(attribute, {}).get("N")
    return None if number is None else Decimal(number)


def _isolated(item: Item) -> Item:
    """Return a deep copy of `item`; a round trip through JSON is the fastest way."""
    try:
        return json.loads(json.dumps(item))
    except TypeError:
        return copy.deepcopy(item)
