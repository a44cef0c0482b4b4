"""Synthetic GetRecords answers: orders with both images, about 2 kB a record, ten types."""

import base64
import json
from random import Random
from typing import Any

RECORDS_PER_PAGE = 450  # GetRecords answers end at 1 MB
TABLE_ID = "00000000-0000-4000-8000-000000000000"


def pages(count: int, seed: int = 7) -> list[bytes]:
    """That many answers, each about 1 MB; the same for the same seed."""
    rng = Random(seed)
    return [_page(rng, number) for number in range(count)]


def _page(rng: Random, number: int) -> bytes:
    first = number * RECORDS_PER_PAGE
    records = [_record(rng, first + i) for i in range(RECORDS_PER_PAGE)]
    answer = {"Records": records, "NextShardIterator": "next"}
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def _record(rng: Random, number: int) -> dict[str, Any]:
    old = _order(rng, number)
    new = {**old, "revision": {"N": "2"}, "status": {"S": rng.choice(["paid", "shipped"])}}
    new["total"] = {"N": _price(rng)}
    return {
        "eventID": f"{number:032x}",
        "eventName": "MODIFY",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_763_712_000 + number // 1000,
            "Keys": {"customer_id": old["customer_id"], "order_id": old["order_id"]},
            "NewImage": new,
            "OldImage": old,
            "SequenceNumber": str(100_000_000_000_000_000_000_000 + number),
            "SizeBytes": 1500,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
    }


def _order(rng: Random, number: int) -> dict[str, Any]:
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


def _line(rng: Random) -> dict[str, Any]:
    sku, quantity = f"sku-{rng.randint(1, 999)}", str(rng.randint(1, 5))
    return {"M": {"sku": {"S": sku}, "qty": {"N": quantity}, "price": {"N": _price(rng)}}}


def _price(rng: Random) -> str:
    return f"{rng.randint(1, 99_999) / 100:g}"
