"""Tables, streams, shards and records as they are, without any API around them.

Nothing here is locked: `StreamsSimulator` has one lock around the model.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import msgspec

from cdc_pipeline_tests.simulators.items import Item, hash_of, identity, key_of, same, size_of

RETENTION_SECONDS = 24 * 3600
REGION = "us-east-1"
ACCOUNT = "000000000000"
VIEW_TYPES = ("NEW_AND_OLD_IMAGES", "NEW_IMAGE", "OLD_IMAGE", "KEYS_ONLY")
_HASHES = 2**32
_TTL_IDENTITY = {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}

Clock = Callable[[], float]


@dataclass(slots=True)
class Record:
    """One stream record and what it is about.

    `order`: counts all writes of the simulator. `new_image` and `old_image` are the item's,
    whatever the view type; `wire` is the record as GetRecords serves it.
    """

    table_id: str
    stream_arn: str
    shard_id: str
    sequence_number: str
    event_id: str
    event_name: str
    created: int
    order: int
    keys: Item
    new_image: Item | None
    old_image: Item | None
    by_ttl: bool
    wire: bytes


@dataclass(slots=True)
class Shard:
    """A shard. `records` keeps trimmed ones, `trimmed` counts them; so indexes never move.

    `ends`: how many bytes `records` hold up to and including each.
    """

    shard_id: str
    parent_id: str | None
    low: int
    high: int
    starting: int
    last_number: int
    ending: int | None = None
    opened_at: float = 0.0
    closed_at: float = 0.0
    records: list[Record] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    trimmed: int = 0

    @property
    def is_open(self) -> bool:
        return self.ending is None

    def append(self, number: int, record: Record) -> None:
        self.last_number = number
        self.records.append(record)
        self.numbers.append(number)
        self.ends.append((self.ends[-1] if self.ends else 0) + len(record.wire))

    def replace(self, index: int, wire: bytes) -> None:
        """Serve other bytes for a record that is written already."""
        grown = len(wire) - len(self.records[index].wire)
        self.records[index].wire = wire
        self.ends[index:] = [end + grown for end in self.ends[index:]]

    def trim(self, now: float) -> None:
        """Forget records whose 24 hours have passed, from the head on."""
        records = self.records
        horizon = now - RETENTION_SECONDS
        while self.trimmed < len(records) and records[self.trimmed].created <= horizon:
            self.trimmed += 1

    def is_listed(self, now: float) -> bool:
        if self.is_open:
            return True
        last = self.records[-1].created if self.records else self.closed_at
        return last > now - RETENTION_SECONDS


class Stream:
    """One stream of one table: its shards, and which of them are open."""

    def __init__(
        self, table: "Table", label: str, view_type: str, shards: int, model: "StreamsModel"
    ) -> None:
        self.table = table
        self.label = label
        self.arn = f"{table.arn}/stream/{label}"
        self.view_type = view_type
        self.created_at = model.clock()
        self.disabled_at: float | None = None
        self.shards: dict[str, Shard] = {}
        self._model = model
        self._open: list[Shard] = []
        self._by_id: list[str] = []
        self._lows: list[int] = []
        bounds = [_HASHES * i // shards for i in range(shards + 1)]
        for low, high in pairwise(bounds):
            # Just below a power of ten, so that the numbers soon get longer.
            start = 10 ** model.random.randrange(21, 25) - model.random.randrange(1, 2000)
            self._open_shard(None, low, high, start)

    def open_shards(self) -> list[Shard]:
        """The open shards, by hash range."""
        return list(self._open)

    def listed(self, after: str, limit: int, of: str | None) -> list[Shard]:
        """The first shards, by id, that DescribeStream knows of behind one; `of`: children of one.

        With `lags`, it hears of them late.
        """
        model, found = self._model, list[Shard]()
        now, lag = model.clock(), model.lags[of is not None]
        if len(self._by_id) != len(self.shards):
            self._by_id = sorted(self.shards)
        for shard_id in self._by_id[bisect_right(self._by_id, after) :]:
            shard = self.shards[shard_id]
            shown = shard.parent_id is None or shard.opened_at <= now - lag
            if of in (None, shard.parent_id) and shown and shard.is_listed(now):
                found.append(shard)
                if len(found) == limit:
                    break
        return found

    def exists(self) -> bool:
        if self.disabled_at is None:
            return True
        return self._model.clock() < self.disabled_at + RETENTION_SECONDS

    def owner(self, key: Item) -> Shard:
        """The open shard that holds a key's changes now."""
        place = hash_of(key)
        index = bisect_right(self._lows, place) - 1
        if index < 0 or place >= self._open[index].high:
            raise ValueError(f"no open shard holds {key}")
        return self._open[index]

    def close(self, shard: Shard) -> None:
        if not shard.is_open:
            raise ValueError(f"{shard.shard_id} is closed already")
        if not self._model.exact_bounds:
            shard.last_number += self._model.step()
        shard.ending = shard.last_number
        shard.closed_at = self._model.clock()
        self._open.remove(shard)
        self._lows = [s.low for s in self._open]

    def replace(self, shard: Shard, children: int) -> list[Shard]:
        """Close a shard; its hash range goes to new ones in equal parts."""
        self.close(shard)
        width = shard.high - shard.low
        bounds = [shard.low + width * i // children for i in range(children + 1)]
        return [
            self._open_shard(shard, low, high, shard.last_number + self._model.step())
            for low, high in pairwise(bounds)
        ]

    def disable(self) -> None:
        if self.disabled_at is None:
            self.disabled_at = self._model.clock()
            for shard in self.open_shards():
                self.close(shard)

    def _open_shard(self, parent: Shard | None, low: int, high: int, start: int) -> Shard:
        suffix = self._model.random.getrandbits(32)
        shard = Shard(
            shard_id=f"shardId-{int(self._model.clock() * 1000):020d}-{suffix:08x}",
            parent_id=parent.shard_id if parent else None,
            low=low,
            high=high,
            starting=start,
            last_number=start,
            opened_at=self._model.clock(),
        )
        self.shards[shard.shard_id] = shard
        at = bisect_right(self._lows, low)
        self._open.insert(at, shard)
        self._lows.insert(at, low)
        return shard


@dataclass(slots=True)
class _Stored:
    item: Item
    encoded: msgspec.Raw


class Table:
    """A table: its items, and the stream that is on now, or was last."""

    def __init__(self, name: str, key_names: tuple[str, ...], backups: bool, now: float) -> None:
        self.name = name
        self.arn = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{name}"
        self.key_names = key_names
        self.backups = backups
        self.created_at = now
        self.table_id = ""
        self.replicas: tuple[str, ...] = ()
        self.strongly_consistent = False
        self.stored: dict[tuple[Any, ...], _Stored] = {}
        self.stream: Stream | None = None

    @property
    def active_stream(self) -> Stream | None:
        """The stream that gets this table's records, None while it is off."""
        return self.stream if self.stream and self.stream.disabled_at is None else None

    def items(self) -> list[Item]:
        return [stored.item for stored in self.stored.values()]

    def get(self, key: Item) -> Item | None:
        stored = self.stored.get(identity(key_of(key, self.key_names)))
        return stored.item if stored else None


class StreamsModel:
    """All tables and streams of one account. Random choices come from `seed`.

    `exact_bounds`: shards are listed with the numbers of their first and last record.
    """

    def __init__(self, clock: Clock, seed: int = 0, *, exact_bounds: bool = True) -> None:
        self.clock = clock
        self.exact_bounds = exact_bounds
        self.random = random.Random(seed)
        self.tables: dict[str, Table] = {}
        self.streams: dict[str, Stream] = {}
        self.records: dict[str, list[Record]] = {}
        self._writes = 0
        # How late, in seconds, a shard shows in whole listings, and when its parent is asked for.
        self.lags = (0.0, 0.0)

    def step(self) -> int:
        """The distance between two sequence numbers of a shard."""
        return 1 + self.random.getrandbits(self.random.choice((1, 8, 30)))

    def create_table(
        self, name: str, key: Sequence[str], view_type: str | None, shards: int, backups: bool
    ) -> Table:
        if name in self.tables:
            raise ValueError(f"table {name} exists")
        table = Table(name, tuple(key), backups, self.clock())
        bits = f"{self.random.getrandbits(128):032x}"
        table.table_id = "-".join((bits[:8], bits[8:12], bits[12:16], bits[16:20], bits[20:]))
        self.tables[name] = table
        self.records.setdefault(name, [])
        if view_type is not None:
            self.enable_stream(name, view_type, shards)
        return table

    def delete_table(self, name: str) -> None:
        """Items go without records; the stream stays readable for 24 hours."""
        table = self.tables.pop(name)
        if table.stream is not None:
            table.stream.disable()

    def enable_stream(self, name: str, view_type: str, shards: int) -> Stream:
        table = self.tables[name]
        if table.active_stream is not None:
            raise ValueError(f"table {name} has a stream already")
        if view_type not in VIEW_TYPES:
            raise ValueError(f"{view_type} is none of {VIEW_TYPES}")
        millis = int(self.clock() * 1000)
        while any(stream.label == _label(millis) for stream in self.streams.values()):
            millis += 1
        table.stream = Stream(table, _label(millis), view_type, shards, self)
        self.streams[table.stream.arn] = table.stream
        return table.stream

    def write(
        self, name: str, key: Item, item: Item | None, *, by_ttl: bool = False
    ) -> Record | None:
        """Put an item, or delete it (None); the record, None if there is none."""
        table = self.tables[name]
        place = identity(key)
        old = table.stored.get(place)
        if item is None:
            new = None
            table.stored.pop(place, None)
        else:
            encoded = msgspec.json.encode(item)
            # Decoded again: the caller may go on with its object, and bytes become base64 text.
            new = _Stored(msgspec.json.decode(encoded), msgspec.Raw(encoded))
            table.stored[place] = new
        images = (old.item if old else None, new.item if new else None)
        if same(*images):
            return None
        self.changed(table, key, *images, by_ttl)
        stream = table.active_stream
        return None if stream is None else self._record(table, stream, key, old, new, by_ttl)

    def changed(
        self, table: Table, key: Item, old: Item | None, new: Item | None, by_ttl: bool
    ) -> None:
        """Hear of every change, also of those that no DynamoDB stream hears of."""

    def _record(
        self,
        table: Table,
        stream: Stream,
        key: Item,
        old: _Stored | None,
        new: _Stored | None,
        by_ttl: bool,
    ) -> Record:
        shard = stream.owner(key)
        first = not shard.numbers and self.exact_bounds
        number = shard.starting if first else shard.last_number + self.step()
        self._writes += 1
        event_id = f"{self.random.getrandbits(128):032x}"
        event_name = "REMOVE" if new is None else "MODIFY" if old else "INSERT"
        created = int(self.clock())
        body: dict[str, Any] = {"ApproximateCreationDateTime": created, "Keys": key}
        size = size_of(key)
        if new is not None and stream.view_type in ("NEW_IMAGE", "NEW_AND_OLD_IMAGES"):
            body["NewImage"] = new.encoded
            size += size_of(new.item)
        if old is not None and stream.view_type in ("OLD_IMAGE", "NEW_AND_OLD_IMAGES"):
            body["OldImage"] = old.encoded
            size += size_of(old.item)
        body |= {
            "SequenceNumber": str(number),
            "SizeBytes": size,
            "StreamViewType": stream.view_type,
        }
        wire = {
            "eventID": event_id,
            "eventName": event_name,
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": REGION,
            "dynamodb": body,
        }
        if by_ttl:
            wire["userIdentity"] = _TTL_IDENTITY
        record = Record(
            table_id=table.table_id,
            stream_arn=stream.arn,
            shard_id=shard.shard_id,
            sequence_number=str(number),
            event_id=event_id,
            event_name=event_name,
            created=created,
            order=self._writes,
            keys=key,
            new_image=new.item if new else None,
            old_image=old.item if old else None,
            by_ttl=by_ttl,
            wire=msgspec.json.encode(wire),
        )
        shard.append(number, record)
        self.records[table.name].append(record)
        return record


def _label(millis: int) -> str:
    moment = datetime.fromtimestamp(millis / 1000, UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds")
