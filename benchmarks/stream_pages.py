"""Synthetic GetRecords answers, about 1 MB each, of two tables: plain orders and a hostile one.

Names come in a fixed order that is not sorted: AWS documents none.
"""

import base64
import json
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Any

TABLE_ID = "00000000-0000-4000-8000-000000000000"
_PAGE_BYTES = 1_000_000
_ORDERS = 50_000

Image = dict[str, Any]
Change = tuple[Image | None, Image | None]
"""Old and new image."""


def pages(data: str, count: int, seed: int = 7) -> list[bytes]:
    """That many answers of a data set of `DATA_SETS`; the same for the same seed."""
    return list(islice(_pages(DATA_SETS[data](Random(seed))), count))


def _pages(changes: Iterator[Change]) -> Iterator[bytes]:
    records: list[str] = []
    for number, (old, new) in enumerate(changes):
        records.append(_json(_record(number, old, new)))
        if sum(map(len, records)) >= _PAGE_BYTES:
            yield f'{{"NextShardIterator":"next","Records":[{",".join(records)}]}}'.encode()
            records = []


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _record(number: int, old: Image | None, new: Image | None) -> dict[str, Any]:
    image = new or old or {}
    body: dict[str, Any] = {
        "ApproximateCreationDateTime": 1_763_712_000 + number // 1000,
        "Keys": {name: image[name] for name in ("order_id", "customer_id")},
        "SequenceNumber": str(100_000_000_000_000_000_000_000 + number),
        "SizeBytes": 1500,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    }
    body |= {"NewImage": new} if new else {}
    body |= {"OldImage": old} if old else {}
    return {
        "eventID": f"{number:032x}",
        "eventName": "INSERT" if not old else "MODIFY" if new else "REMOVE",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": body,
    }


def _orders(rng: Random) -> Iterator[Change]:
    """Orders change as keys of a Zipf distribution: their old image is their last new one."""
    orders: dict[int, Image] = {}
    number = 0
    while True:
        number += 1
        key = int(_ORDERS ** rng.random())
        old = orders.get(key)
        if old and rng.random() < 0.02:
            yield orders.pop(key), None
            continue
        changed = {
            "updated_at": {"S": _time(number)},
            "status": {"S": rng.choice(["new", "paid", "packed", "shipped", "returned"])},
            "version": {"N": str(number)},
        }
        orders[key] = {**(old or _order(rng, key)), **changed}
        yield old, orders[key]


def _time(number: int) -> str:
    return f"2026-11-20T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.789Z"


def _order(rng: Random, key: int) -> Image:
    return {
        "version": {"N": "0"},
        "order_id": {"S": f"o-{key:010d}"},
        "status": {"S": "new"},
        "customer_id": {"S": f"c-{key % 9973:06d}"},
        "ordered_at": {"S": _time(key)},
        "updated_at": {"S": _time(key)},
        "total": {"N": _price(rng)},
        "currency": {"S": "EUR"},
        "gift": {"BOOL": rng.random() < 0.1},
        "coupon": {"S": f"spring-{rng.randint(1, 99)}"} if rng.random() < 0.2 else {"NULL": True},
        "payment": {
            "M": {
                "method": {"S": rng.choice(["card", "invoice", "transfer"])},
                "reference": {"S": f"{rng.getrandbits(64):016x}"},
                "fee": {"N": _price(rng)},
            }
        },
        "warehouse": {"S": f"eu-central-{rng.randint(1, 9)}"},
        "source": {"S": rng.choice(["web", "app", "shop"])},
        "note": {"S": rng.choice(["", "", "leave at the door", "bitte klingeln, Tür links"])},
        "shipping": {
            "M": {
                "street": {"S": f"{rng.randint(1, 300)} Main street"},
                "city": {"S": rng.choice(["Berlin", "Lyon", "Pune", "Austin"])},
                "zip": {"S": str(rng.randint(10_000, 99_999))},
            }
        },
        "lines": {"L": [_line(rng) for _ in range(rng.randint(1, 4))]},
    }


def _hostile(rng: Random) -> Iterator[Change]:
    """All ten types, all images new, with lists, binaries and texts that never come again."""
    number = 0
    while True:
        number += 1
        old = _rich_order(rng, number)
        changed = {
            "revision": {"N": "2"},
            "status": {"S": rng.choice(["paid", "shipped"])},
            "total": {"N": _price(rng)},
        }
        yield old, {**old, **changed}


def _rich_order(rng: Random, number: int) -> Image:
    return {
        "customer_id": {"S": f"c-{number % 997:06d}"},
        "order_id": {"S": f"o-{number:010d}"},
        "status": {"S": "new"},
        "total": {"N": _price(rng)},
        "currency": {"S": "EUR"},
        "country": {"S": rng.choice(["DE", "FR", "IN", "US"])},
        "ordered_at": {"S": f"2026-11-20T{number % 24:02d}:34:56.789Z"},
        "gift": {"BOOL": rng.random() < 0.1},
        "coupon": {"NULL": True},
        "tags": {"SS": ["b", "a", "c"]},
        "parcels": {"NS": ["3", "1", "2"]},
        "revision": {"N": "1"},
        "note": {"S": f"Grüße an {number} " + "x" * 80},
        "shipping": {
            "M": {
                "street": {"S": f"Main street {number % 100}"},
                "zip": {"S": f"{10000 + number % 5000}"},
                "geo": {"L": [{"N": "52.52"}, {"N": "13.405"}]},
            }
        },
        "lines": {"L": [_line(rng) for _ in range(3)]},
        "signature": {"B": base64.b64encode(rng.randbytes(40)).decode()},
        "labels": {"BS": [base64.b64encode(b"fragile").decode()]},
    }


def _line(rng: Random) -> Image:
    sku, quantity = f"sku-{rng.randint(1, 999)}", str(rng.randint(1, 5))
    return {"M": {"sku": {"S": sku}, "qty": {"N": quantity}, "price": {"N": _price(rng)}}}


def _price(rng: Random) -> str:
    return f"{rng.randint(1, 99_999) / 100:g}"


DATA_SETS: dict[str, Callable[[Random], Iterator[Change]]] = {
    "orders": _orders,
    "hostile to caches": _hostile,
}
