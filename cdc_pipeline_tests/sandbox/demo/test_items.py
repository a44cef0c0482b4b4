"""The sandbox's items, without a server."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from cdc_pipeline.sandbox.demo import items

_WHEN = datetime(2026, 3, 1, tzinfo=UTC)


def _values(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    ((kind, inner),) = value.items()
    yield kind, inner
    nested = {"M": lambda: inner.values(), "L": lambda: inner}.get(kind, list)()
    for child in nested:
        yield from _values(child)


def _oddities(kind: str, inner: Any) -> Iterator[str]:
    if kind == "B" and not inner:
        yield "empty binary"
    if kind == "S":
        patterns = {"empty text": r"", "text of digits": r"0\d+", "unicode": r".*[^\x00-\x7f].*"}
        yield from (name for name, pattern in patterns.items() if re.fullmatch(pattern, inner))
    if kind == "N":
        patterns = {"38 digits": r"\d{38}", "tiny": r".*E-1\d\d", "huge": r".*E\+1\d\d"}
        patterns["negative"] = r"-.*"
        yield from (name for name, pattern in patterns.items() if re.fullmatch(pattern, inner))


def test_items_are_what_breaks_naive_copies() -> None:
    orders = [items.order(7, n, 60, _WHEN) for n in range(500)]
    customers = [items.customer(7, n, _WHEN) for n in range(60)]
    kinds: dict[str, set[str]] = {}
    found: Counter[str] = Counter()
    for item in orders + customers:
        for name, value in item.items():
            kinds.setdefault(name, set()).update(value)
            for kind, inner in _values(value):
                found[kind] += 1
                found.update(_oddities(kind, inner))
    assert {"S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS"} <= found.keys()
    assert {
        "empty text",
        "empty binary",
        "text of digits",
        "38 digits",
        "tiny",
        "huge",
        "negative",
        "unicode",
    } <= found.keys()
    assert kinds["discount"] == {"N", "S"}
    assert {"note", "Note", "utm.source", "invoice-number", "date"} <= kinds.keys()
    assert all(len(order) >= 15 for order in orders)
    assert not all("discount" in order for order in orders)
    assert all(re.fullmatch(r"\d+\.\d\d", order["total"]["N"]) for order in orders)
    assert {order["country"]["S"] for order in orders} <= set(items.COUNTRIES)


def test_the_same_seed_gives_the_same_items() -> None:
    assert items.order(7, 5, 60, _WHEN) == items.order(7, 5, 60, _WHEN)
    assert items.order(7, 5, 60, _WHEN) != items.order(8, 5, 60, _WHEN)
    assert items.customer(7, 5, _WHEN) == items.customer(7, 5, _WHEN)
