"""Items of the sandbox's orders and customers: pure functions of a seed and a number.

Together the two tables use all ten attribute types, and on purpose values that break naive copies:
attributes that are absent, null or of another type in some items, names that differ only in case
or need quoting, numbers of 38 digits and extreme exponents, empty values, text in the form of a
number.
"""

import zlib
from datetime import datetime, timedelta
from random import Random
from typing import Any

Item = dict[str, Any]

COUNTRIES = ("DE", "FR", "JP", "BR", "US", "IN", "SE", "EG")
SEGMENTS = ("consumer", "business", "public", "education")
STATUSES = ("placed", "paid", "packed", "shipped", "delivered", "returned")
_CITIES = ("Köln", "Besançon", "札幌", "São Paulo", "Reno", "पुणे", "Malmö", "القاهرة")
_NAMES = ("Zoë", "José", "Łukasz", "Åsa", "Nguyễn", "O'Brien", "陽子", "Anna-Lena")
_PRODUCTS = ("kettle", "lamp", "notebook", "rucksack", "tea ☕", "umbrella", "wool socks")
_TAGS = ("b2b", "express", "fragile", "gift", "première", "repeat", "web")
_SPREAD_DAYS = 30


def customer_id(number: int) -> str:
    """Return the key of a customer, such as `c-000042`."""
    return f"c-{number:06d}"


def order_key(seed: int, number: int, customers: int) -> dict[str, dict[str, str]]:
    """Return the key of an order; its customer follows from the seed and its number."""
    buyer = zlib.crc32(f"{seed}/{number}".encode()) % max(1, customers)
    return {"customer_id": {"S": customer_id(buyer)}, "order_id": {"S": f"o-{number:08d}"}}


def seeded_time(seed: int, number: int, until: datetime) -> datetime:
    """Return the time of a seeded order, in the 30 days before `until`."""
    seconds = zlib.crc32(f"time/{seed}/{number}".encode()) % (_SPREAD_DAYS * 24 * 3600)
    return until - timedelta(days=_SPREAD_DAYS) + timedelta(seconds=seconds)


def customer(seed: int, number: int, joined: datetime) -> Item:
    """Return one customer as typed attribute values."""
    rng = Random(f"customer/{seed}/{number}")
    place = rng.randrange(len(_CITIES))
    item: Item = {
        "customer_id": {"S": customer_id(number)},
        "name": {"S": f"{rng.choice(_NAMES)} {number}"},
        "email": {"S": f"customer{number}@example.com"},
        "segment": {"S": SEGMENTS[number % len(SEGMENTS)]},
        "country": {"S": COUNTRIES[place]},
        "joined_at": {"S": _iso(joined)},
        "loyalty_points": {"N": str(rng.randint(-500, 90_000))},
        "credit_limit": {"N": _money(rng, 50_000_00)},
        "newsletter": {"BOOL": rng.random() < 0.4},
        "referred_by": {"NULL": True} if number % 3 else {"S": customer_id(number // 3)},
        "interests": {"SS": sorted(rng.sample(_TAGS, 3))},
        "ratings": {"NS": [str(n) for n in sorted(rng.sample(range(-5, 6), 4))]},
        "api_keys": {"BS": [rng.randbytes(8) for _ in range(2)]},
        "avatar": {"B": rng.randbytes(48)},
        "address": {"M": _address(rng, place)},
        "phones": {"L": [{"S": f"00{rng.randint(10**8, 10**9)}"}, {"N": str(number)}]},
        "note": {"S": ""},
        "Note": {"S": f"Segment review {number % 12 + 1:02d}"},
    }
    if number % 10 == 0:
        item["vip.since"] = {"S": _iso(joined)}
    return item


def order(seed: int, number: int, customers: int, placed: datetime, *, revision: int = 0) -> Item:
    """Return one order as typed attribute values; each revision is another state of the order."""
    rng = Random(f"order/{seed}/{number}")
    place = rng.randrange(len(_CITIES))
    lines = [_line(rng) for _ in range(rng.randint(1, 3))]
    item: Item = {
        **order_key(seed, number, customers),
        "ordered_at": {"S": _iso(placed)},
        "status": {"S": STATUSES[(number + revision) % len(STATUSES)]},
        "country": {"S": COUNTRIES[place]},
        "currency": {"S": "EUR"},
        "total": {"N": _total(lines)},
        "revision": {"N": str(revision)},
        "lines": {"L": lines},
        "shipping": {"M": _address(rng, place)},
        "carrier": {"S": rng.choice(("Parcel Post International", "Overnight Express Freight"))},
        "gift": {"BOOL": rng.random() < 0.2},
        "coupon": {"NULL": True},
        "tags": {"SS": sorted(rng.sample(_TAGS, rng.randint(1, 3)))},
        "parcels": {"NS": [str(n) for n in range(1, len(lines) + 1)]},
        "signature": {"B": rng.randbytes(48)},
        "invoice-number": {"S": f"{number % 1000:03d}"},
        "ledger_id": {"N": str(rng.randint(10**37, 10**38 - 1))},
    }
    _add_oddities(item, rng, number)
    return item


def _add_oddities(item: Item, rng: Random, number: int) -> None:
    """Add attributes that only some orders have, or have with another type."""
    if number % 3 == 0:
        item["discount"] = {"S": "10 %"} if number % 21 == 0 else {"N": f"{number % 40}.5"}
    if number % 4 == 0:
        item["note"] = {"S": "leave at the door; «ring twice» \U0001f6aa"}
        item["Note"] = {"N": "7"} if number % 8 == 0 else {"S": ""}
    if number % 5 == 0:
        item["utm.source"] = {"S": rng.choice(("mail", "search", "友達"))}
    if number % 6 == 0:
        item["fx_rate"] = {"N": f"{rng.randint(1, 9)}.{rng.randint(1, 99)}E-{number % 120}"}
        item["balance"] = {"N": f"-{rng.randint(1, 10**9)}.{rng.randint(1, 99):02d}"}
    if number % 7 == 0:
        item["date"] = {"S": "0001-01-01"}
        item["attachment"] = {"B": b""}
        item["labels"] = {"BS": [rng.randbytes(4), rng.randbytes(6)]}
    if number % 11 == 0:
        item["score"] = {"N": f"{rng.randint(1, 9)}.{rng.randint(1, 9)}E+{100 + number % 25}"}
        item["history"] = {"L": [{"L": []}, {"M": {}}, {"NULL": True}, {"BOOL": False}]}


def _line(rng: Random) -> dict[str, Any]:
    return {
        "M": {
            "sku": {"S": f"{rng.randint(0, 99_999):06d}"},
            "title": {"S": rng.choice(_PRODUCTS)},
            "quantity": {"N": str(rng.randint(1, 4))},
            "price": {"N": _money(rng, 200_00)},
        }
    }


def _address(rng: Random, place: int) -> dict[str, Any]:
    latitude = f"{rng.uniform(-90, 90):.6f}"
    longitude = f"{rng.uniform(-180, 180):.6f}"
    return {
        "city": {"S": _CITIES[place]},
        "street": {"S": f"{rng.randint(1, 300)} Main Street, building {rng.choice('ABCD')}"},
        "zip": {"S": f"{rng.randint(7, 99_999):05d}"},
        "geo": {"M": {"lat": {"N": latitude}, "lon": {"N": longitude}}},
    }


def _total(lines: list[dict[str, Any]]) -> str:
    cents = sum(
        int(line["M"]["price"]["N"].replace(".", "")) * int(line["M"]["quantity"]["N"])
        for line in lines
    )
    return f"{cents // 100}.{cents % 100:02d}"


def _money(rng: Random, most_cents: int) -> str:
    cents = rng.randint(1, most_cents)
    return f"{cents // 100}.{cents % 100:02d}"


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
