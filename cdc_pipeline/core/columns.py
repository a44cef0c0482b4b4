"""Column types of a schemaless table: what each attribute holds, and the type that holds it all."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

INT64_DIGITS = 18
DECIMAL_DIGITS = 38
SYSTEM_COLUMNS = ("_key", "_order_key", "_write_time_us", "_item", "_rescued")


@dataclass
class AttributeStats:
    """What was seen of one top-level attribute: values by tag, and how wide its numbers are."""

    tags: Counter[str] = field(default_factory=Counter)
    integer_digits: int = 0
    scale: int = 0

    def see(self, tag: str, content: Any) -> None:
        """Count one canonical value."""
        self.tags[tag] += 1
        if tag == "N":
            self._measure(content)
        elif tag == "NS":
            for number in content:
                self._measure(number)

    def _measure(self, number: str) -> None:
        if number.isdigit():
            self.integer_digits = max(self.integer_digits, len(number))
            return
        _, digits, exponent = Decimal(number).as_tuple()
        assert isinstance(exponent, int)  # canonical numbers are finite
        self.scale = max(self.scale, -exponent)
        self.integer_digits = max(self.integer_digits, len(digits) + exponent)

    def merge(self, other: "AttributeStats") -> None:
        """Add what was seen elsewhere."""
        self.tags += other.tags
        self.integer_digits = max(self.integer_digits, other.integer_digits)
        self.scale = max(self.scale, other.scale)


Stats = dict[str, AttributeStats]


def observe(stats: Stats, item: Mapping[str, Mapping[str, Any]]) -> None:
    """Count every top-level attribute of a canonical item."""
    for name, value in item.items():
        ((tag, content),) = value.items()
        seen = stats.get(name)
        if seen is None:
            seen = stats[name] = AttributeStats()
        seen.see(tag, content)


@dataclass(frozen=True)
class Column:
    """One typed column: the attribute it shows, the DynamoDB tag it holds and its type.

    `type` is one of `string`, `boolean`, `binary`, `int64`, `decimal(p,s)`, `json`, and
    `list<...>` of the first five for sets. Values of other tags are in the rescue column.
    """

    name: str
    attribute: str
    tag: str
    type: str


_FIXED_TYPES = {
    "S": "string",
    "B": "binary",
    "BOOL": "boolean",
    "M": "json",
    "L": "json",
    "SS": "list<string>",
    "BS": "list<binary>",
}


def number_type(stats: AttributeStats) -> str:
    """The narrowest type that holds every number exactly, in steps that seldom need to widen."""
    if stats.scale == 0 and stats.integer_digits <= INT64_DIGITS:
        return "int64"
    digits = stats.integer_digits + stats.scale
    if digits > DECIMAL_DIGITS:
        return "string"
    return f"decimal({INT64_DIGITS if digits <= INT64_DIGITS else DECIMAL_DIGITS},{stats.scale})"


def _main_tag(stats: AttributeStats) -> str | None:
    tags = [(count, tag) for tag, count in stats.tags.items() if tag != "NULL"]
    return max(tags)[1] if tags else None


def columns_of(
    stats: Stats, prior: Iterable[Column] = (), *, keep_tags: bool = False
) -> list[Column]:
    """Typed columns for everything seen, sorted by name.

    A column name in `prior` stays with its attribute; with `keep_tags` so does its tag, as it
    must where new rows meet a table that is typed already. An attribute that was only ever NULL
    is a string column. Names are lower case: Athena, Glue and DuckDB do not tell `a` from `A`.
    """
    before = {column.attribute: column for column in prior}
    names = _column_names(stats, {a: column.name for a, column in before.items()})
    columns = []
    for attribute, seen in stats.items():
        kept = before.get(attribute) if keep_tags else None
        tag = kept.tag if kept else _main_tag(seen) or "S"
        columns.append(Column(names[attribute], attribute, tag, _type_of(tag, seen)))
    return sorted(columns, key=lambda column: column.name)


def _type_of(tag: str, stats: AttributeStats) -> str:
    if tag == "N":
        return number_type(stats)
    return f"list<{number_type(stats)}>" if tag == "NS" else _FIXED_TYPES[tag]


def _column_names(attributes: Iterable[str], names: dict[str, str]) -> dict[str, str]:
    taken = {*names.values(), *SYSTEM_COLUMNS}
    fresh = [a for a in attributes if a not in names]
    for attribute in sorted(fresh, key=lambda a: (a != _plain_name(a), a)):
        name = _plain_name(attribute)
        digest = hashlib.sha256(attribute.encode()).hexdigest()
        if not name or name in taken:
            candidates = (f"{name}_{digest[:length]}" for length in range(6, 65))
            name = next(candidate for candidate in candidates if candidate not in taken)
        names[attribute] = name
        taken.add(name)
    return names


def _plain_name(attribute: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", attribute.lower())
