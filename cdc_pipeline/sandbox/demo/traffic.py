"""Tables, seed data and live traffic for the sandbox, written through a real boto3 client."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from random import Random
from typing import Any

from cdc_pipeline.sandbox.demo import items
from cdc_pipeline.sandbox.demo.items import Item
from cdc_pipeline.sandbox.errors import SandboxError

ORDERS = "orders"
CUSTOMERS = "customers"
TTL_ATTRIBUTE = "expires_at"

KEYS = {ORDERS: ("customer_id", "order_id"), CUSTOMERS: ("customer_id",)}
_BATCH = 25  # the maximum of BatchWriteItem
_SEED_THREADS = 4
_ATTEMPTS = 12
# Numbers of orders made by traffic start here, above any seed.
_FIRST_LIVE_ORDER = 50_000_000
_SKIP = 1_000
_TTL_SECONDS = (2, 5)


@dataclass(frozen=True)
class TrafficCounts:
    """Changes made by traffic: items per kind of change, then calls and special cases.

    `inserts`, `updates` and `deletes` count items that really changed: their sum is the expected
    number of stream records, plus one REMOVE for each of `ttl_items` after its expiry.
    `batch_writes` and `transactions` count calls, whose items are included above; `reinserts` are
    inserts of a key deleted just before; `no_ops` are writes without a change.
    """

    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    batch_writes: int = 0
    transactions: int = 0
    ttl_items: int = 0
    reinserts: int = 0
    no_ops: int = 0

    @property
    def changes(self) -> int:
        """Items inserted, updated or deleted."""
        return self.inserts + self.updates + self.deletes

    def __str__(self) -> str:
        """Format the counts in one line."""
        pairs = (
            (field.name.replace("_", " "), getattr(self, field.name)) for field in fields(self)
        )
        return ", ".join(f"{count} {name}" for name, count in pairs)


def create_tables(dynamodb: Any) -> None:
    """Create `orders` and `customers` unless they exist, each with a stream and recovery.

    Streams carry new and old images, point-in-time recovery is on, and `orders` expire at
    `expires_at`. Takes a boto3 `dynamodb` client.
    """
    for name, keys in KEYS.items():
        try:
            dynamodb.create_table(**_definition(name, keys))
        except dynamodb.exceptions.ResourceInUseException:
            continue
        dynamodb.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1})
        dynamodb.update_continuous_backups(
            TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
        )
        if name == ORDERS:
            expire_orders(dynamodb)


def expire_orders(dynamodb: Any) -> None:
    """Enable TTL of orders."""
    dynamodb.update_time_to_live(
        TableName=ORDERS,
        TimeToLiveSpecification={"Enabled": True, "AttributeName": TTL_ATTRIBUTE},
    )


def seed(
    dynamodb: Any,
    *,
    orders: int,
    customers: int,
    seed: int = 7,
    progress: Callable[[int], None] | None = None,
    until: datetime | None = None,
) -> int:
    """Write `orders` orders and `customers` customers; return the number of items written.

    The same seed gives the same items. Orders are spread over the 30 days before `until`, by
    default the start of today (UTC), so that a second call on the same day changes nothing.
    `progress` gets the number of items written so far, from any thread, one call at a time.

    Raises SandboxError if writes stay unprocessed, and botocore's errors.
    """
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    end = until or midnight
    made = itertools.chain(
        ((CUSTOMERS, items.customer(seed, number, end)) for number in range(customers)),
        (
            (ORDERS, items.order(seed, n, customers, items.seeded_time(seed, n, end)))
            for n in range(orders)
        ),
    )
    batches = _batches(made)
    lock = threading.Lock()
    written = 0

    def work() -> None:
        nonlocal written
        while True:
            with lock:
                batch = next(batches, None)
            if batch is None:
                return
            _write_batch(
                dynamodb, [(table, {"PutRequest": {"Item": item}}) for table, item in batch]
            )
            with lock:
                written += len(batch)
                if progress is not None:
                    progress(written)

    with ThreadPoolExecutor(_SEED_THREADS) as pool:
        for future in [pool.submit(work) for _ in range(_SEED_THREADS)]:
            future.result()
    return written


class Traffic:
    """A thread that changes the seeded tables as applications do, until stopped.

    Pass the `orders`, `customers` and `seed` of `seed()`: traffic updates and deletes those items
    too. `rate`: changed items per second. The first operations are one of each kind, the others
    random; on freshly seeded tables the same seed gives the same sequence, except for times. It may
    run again on the same tables, but nothing else may write to them: the counts would be wrong.
    """

    def __init__(
        self, dynamodb: Any, *, orders: int, customers: int, rate: float = 20.0, seed: int = 7
    ) -> None:
        if rate <= 0:
            raise SandboxError(f"rate {rate} is not positive", fix="use changes per second")
        self._dynamodb = dynamodb
        self._customers = customers
        self._rate = rate
        self._seed = seed
        self._rng = Random(f"traffic/{seed}")
        self._revision = itertools.count(1)
        self._next_order = itertools.count(_FIRST_LIVE_ORDER)
        self._orders = list(range(orders))
        # Orders confirmed to exist: earlier traffic may have deleted seeded ones.
        self._present: set[int] = set()
        self._counts = TrafficCounts()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def counts(self) -> TrafficCounts:
        """Counts of operations so far."""
        return self._counts

    @property
    def changes(self) -> int:
        """Items inserted, updated or deleted so far."""
        return self._counts.changes

    def start(self) -> None:
        """Start in a daemon thread."""
        if self._thread is not None:
            raise SandboxError("traffic has been started before", fix="make a new Traffic")
        self._thread = threading.Thread(target=self._run, name="sandbox-traffic", daemon=True)
        self._thread.start()

    def stop(self) -> TrafficCounts:
        """Stop after the current operation; return the counts, or raise the error that ended it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._counts

    def _run(self) -> None:
        started = time.monotonic()
        try:
            for operation in self._operations():
                operation()
                due = started + self._counts.changes / self._rate
                if self._stop.wait(max(0.0, due - time.monotonic())):
                    return
        except Exception as error:  # noqa: BLE001 - a thread has no caller: stop() raises it
            self._error = error

    def _operations(self) -> Iterator[Callable[[], None]]:
        weights = {
            self._insert: 26,
            self._update: 30,
            self._replace: 8,
            self._update_customer: 6,
            self._delete: 5,
            self._reinsert: 4,
            self._no_op: 5,
            self._batch: 6,
            self._transact: 5,
            self._insert_expiring: 5,
        }
        yield from weights
        while True:
            yield self._rng.choices(list(weights), weights=list(weights.values()))[0]

    def _count(self, **more: int) -> None:
        now = {name: getattr(self._counts, name) + count for name, count in more.items()}
        self._counts = replace(self._counts, **now)

    def _order(self, number: int, revision: int = 0) -> Item:
        placed = datetime.now(UTC)
        return items.order(self._seed, number, self._customers, placed, revision=revision)

    def _key(self, number: int) -> Item:
        return items.order_key(self._seed, number, self._customers)

    def _exists(self, number: int) -> bool:
        if number not in self._present:
            answer = self._dynamodb.get_item(
                TableName=ORDERS, Key=self._key(number), ProjectionExpression="order_id"
            )
            if "Item" not in answer:
                return False
            self._present.add(number)
        return True

    def _take(self) -> int:
        """Remove an existing order from the choice of later operations and return it."""
        while self._orders:
            at = self._rng.randrange(len(self._orders))
            self._orders[at], self._orders[-1] = self._orders[-1], self._orders[at]
            number = self._orders.pop()
            if self._exists(number):
                return number
        self._insert()
        return self._orders.pop()

    def _known(self) -> int:
        number = self._take()
        self._orders.append(number)
        return number

    def _new(self) -> int:
        """Return the number of an order that does not exist."""
        while self._exists(number := next(self._next_order)):
            # Left by earlier traffic: jump, so that its orders cost few reads.
            self._next_order = itertools.count(number + _SKIP)
        return number

    def _made(self, *numbers: int) -> None:
        self._orders += numbers
        self._present.update(numbers)

    def _put(self, item: Item) -> None:
        self._dynamodb.put_item(TableName=ORDERS, Item=item)

    def _insert(self) -> None:
        number = self._new()
        self._put(self._order(number))
        self._made(number)
        self._count(inserts=1)

    def _insert_expiring(self) -> None:
        # Not added to the known orders: an update after its expiry would recreate it.
        expiry = int(time.time()) + self._rng.randint(*_TTL_SECONDS)
        item = self._order(self._new())
        self._put({**item, TTL_ATTRIBUTE: {"N": str(expiry)}})
        self._count(inserts=1, ttl_items=1)

    def _update(self) -> None:
        revision = next(self._revision)
        self._dynamodb.update_item(
            TableName=ORDERS,
            Key=self._key(self._known()),
            UpdateExpression="SET #status = :status, revision = :revision, "
            "shipping.#seen = :seen REMOVE coupon ADD tags :tags",
            ExpressionAttributeNames={"#status": "status", "#seen": "last seen"},
            ExpressionAttributeValues={
                ":status": {"S": items.STATUSES[revision % len(items.STATUSES)]},
                ":revision": {"N": str(revision)},
                ":seen": {"S": datetime.now(UTC).isoformat()},
                ":tags": {"SS": ["touched"]},
            },
        )
        self._count(updates=1)

    def _replace(self) -> None:
        number = self._known()
        self._put(self._order(number, revision=next(self._revision)))
        self._count(updates=1)

    def _update_customer(self) -> None:
        if not self._customers:
            return
        self._dynamodb.update_item(**self._points())
        self._count(updates=1)

    def _points(self) -> dict[str, Any]:
        chosen = items.customer_id(self._rng.randrange(self._customers))
        return {
            "TableName": CUSTOMERS,
            "Key": {"customer_id": {"S": chosen}},
            "UpdateExpression": "ADD loyalty_points :points",
            "ExpressionAttributeValues": {":points": {"N": str(self._rng.randint(1, 50))}},
        }

    def _delete(self) -> None:
        self._remove(self._take())
        self._count(deletes=1)

    def _remove(self, number: int) -> None:
        self._dynamodb.delete_item(TableName=ORDERS, Key=self._key(number))
        self._present.discard(number)

    def _reinsert(self) -> None:
        number = self._take()
        self._remove(number)
        self._put(self._order(number, revision=next(self._revision)))
        self._made(number)
        self._count(deletes=1, inserts=1, reinserts=1)

    def _no_op(self) -> None:
        key = self._key(self._known())
        answer = self._dynamodb.get_item(TableName=ORDERS, Key=key, ConsistentRead=True)
        self._put(answer["Item"])
        self._count(no_ops=1)

    def _batch(self) -> None:
        gone = self._take()
        number = self._known()
        new = [self._new() for _ in range(3)]
        puts = [self._order(n) for n in new]
        puts.append(self._order(number, revision=next(self._revision)))
        requests = [(ORDERS, {"PutRequest": {"Item": item}}) for item in puts]
        requests.append((ORDERS, {"DeleteRequest": {"Key": self._key(gone)}}))
        _write_batch(self._dynamodb, requests)
        self._present.discard(gone)
        self._made(*new)
        self._count(inserts=3, updates=1, deletes=1, batch_writes=1)

    def _transact(self) -> None:
        number = self._new()
        actions = [{"Put": {"TableName": ORDERS, "Item": self._order(number)}}]
        if self._customers:
            actions.append({"Update": self._points()})
        self._dynamodb.transact_write_items(TransactItems=actions)
        self._made(number)
        self._count(inserts=1, updates=len(actions) - 1, transactions=1)


def _definition(name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    return {
        "TableName": name,
        "KeySchema": [
            {"AttributeName": key, "KeyType": kind}
            for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)
        ],
        "AttributeDefinitions": [{"AttributeName": key, "AttributeType": "S"} for key in keys],
        "BillingMode": "PAY_PER_REQUEST",
        "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    }


def _batches(made: Iterator[tuple[str, Item]]) -> Iterator[list[tuple[str, Item]]]:
    while batch := list(itertools.islice(made, _BATCH)):
        yield batch


def _write_batch(dynamodb: Any, requests: list[tuple[str, dict[str, Any]]]) -> None:
    pending: dict[str, list[dict[str, Any]]] = {}
    for table, request in requests:
        pending.setdefault(table, []).append(request)
    for attempt in range(_ATTEMPTS):
        pending = dynamodb.batch_write_item(RequestItems=pending).get("UnprocessedItems", {})
        if not pending:
            return
        time.sleep(min(2.0, 0.05 * 2**attempt))
    raise SandboxError(
        f"{sum(map(len, pending.values()))} writes stay unprocessed", fix="try again with less load"
    )
