"""A synthetic full export on disk: GZIP files of orders of about 730 B, with their MD5s.

Names come in a fixed order that is not sorted: AWS documents none. Keys are in no order, as the
hashes of real ones are.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from cdc_pipeline.aws.export import DataFile

KEY_NAMES = ("customer_id", "order_id")
_STREET = "Hauptstraße am Münchner Tor"


def write_export(folder: Path, items: int, files: int = 16) -> list[DataFile]:
    """Write that many items; the same ones for the same number."""
    rng = Random(7)
    numbers = list(range(items))
    rng.shuffle(numbers)
    written = []
    for place in range(files):
        chosen = numbers[place::files]
        path = folder / f"{place:026d}.json.gz"
        with gzip.open(path, "wb", compresslevel=6) as file:
            file.writelines(_lines(rng, chosen))
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).digest()
        written.append(DataFile(path.name, base64.b64encode(digest).decode(), len(chosen)))
    return written


def _lines(rng: Random, numbers: list[int]) -> Iterator[bytes]:
    for number in numbers:
        line = json.dumps({"Item": order(rng, number)}, ensure_ascii=False, separators=(",", ":"))
        yield line.encode() + b"\n"


def order(rng: Random, number: int) -> dict[str, Any]:
    """One order as a typed item."""
    return {
        "version": {"N": str(rng.randint(1, 9))},
        "order_id": {"S": f"o-{number:010d}"},
        "status": {"S": rng.choice(["new", "paid", "packed", "shipped", "returned"])},
        "customer_id": {"S": f"c-{number % 99_991:06d}"},
        "ordered_at": {"S": _time(number)},
        "updated_at": {"S": _time(number + rng.randint(0, 80_000))},
        "total": {"N": _price(rng)},
        "currency": {"S": "EUR"},
        "gift": {"BOOL": rng.random() < 0.1},
        "coupon": {"S": f"spring-{rng.randint(1, 99)}"} if rng.random() < 0.2 else {"NULL": True},
        "warehouse": {"S": f"eu-central-{rng.randint(1, 9)}"},
        "source": {"S": rng.choice(["web", "app", "shop"])},
        "note": {"S": rng.choice(["", "", "leave at the door", 'say "Bestellung", bitte'])},
        "tags": {"SS": rng.sample(["fragile", "express", "b2b", "return"], rng.randint(1, 3))},
        "payment": {
            "M": {
                "method": {"S": rng.choice(["card", "invoice", "transfer"])},
                "reference": {"S": f"{rng.getrandbits(64):016x}"},
                "fee": {"N": _price(rng)},
            }
        },
        "shipping": {
            "M": {
                "street": {"S": f"{_STREET} {rng.randint(1, 300)}"},
                "city": {"S": rng.choice(["Berlin", "Lyon", "Pune", "Austin"])},
                "zip": {"S": str(rng.randint(10_000, 99_999))},
            }
        },
        "lines": {"L": [_line(rng)]},
    }


def _line(rng: Random) -> dict[str, Any]:
    quantity = str(rng.randint(1, 5))
    sku = f"sku-{rng.randint(1, 99_999)}"
    return {"M": {"sku": {"S": sku}, "qty": {"N": quantity}, "price": {"N": _price(rng)}}}


def _time(number: int) -> str:
    return f"2026-11-20T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.789Z"


def _price(rng: Random) -> str:
    return f"{rng.randint(1, 99_999) / 100:g}"
