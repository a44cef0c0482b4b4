"""Columns of a schemaless table: statistics of attributes, and the types that hold their values."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from cdc_pipeline.core.items.view_names import VIEW_COLUMNS
from cdc_pipeline.core.names import MAX_COLUMN_NAME

MAX_COLUMNS = 500
"""Default limit of columns, system columns not counted."""

INT64_DIGITS = 18
DECIMAL_DIGITS = 38
_LONG_NAME_DIGITS = 16
SYSTEM_COLUMNS = ("_key", "_order_key", "_write_time_us", "_item", "_rescued")


@dataclass
class AttributeStats:
    """Statistics of one top-level attribute: number of values by tag, and width of its numbers."""

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
        """Add the statistics of other items."""
        self.tags += other.tags
        self.integer_digits = max(self.integer_digits, other.integer_digits)
        self.scale = max(self.scale, other.scale)


Stats = dict[str, AttributeStats]


def subtract_stats(stats: Stats, dropped: Stats) -> Stats:
    """Return statistics without those of some of their items; widths of numbers stay."""
    rest = {}
    for name, seen in stats.items():
        tags = seen.tags - dropped[name].tags if name in dropped else +seen.tags
        if tags:
            rest[name] = AttributeStats(tags, seen.integer_digits, seen.scale)
    return rest


def observe(stats: Stats, item: Mapping[str, Mapping[str, Any]]) -> None:
    """Count every top-level attribute of a canonical item."""
    for name, value in item.items():
        ((tag, content),) = value.items()
        counted = stats.get(name)
        if counted is None:
            counted = stats[name] = AttributeStats()
        counted.see(tag, content)


@dataclass(frozen=True)
class Column:
    """One typed column: its attribute, the DynamoDB tag of its values, and its type.

    `type`: `string`, `boolean`, `binary`, `int64`, `decimal(p,s)`, `json`, or `list<...>` of the
    first five for sets. Values of other tags are in the rescue column. `pinned`: the type is from
    the settings, and numbers that do not fit it are rescued, too.
    """

    name: str
    attribute: str
    tag: str
    type: str
    pinned: bool = False


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
    """Return the narrowest type exact for every number, in coarse steps that seldom widen."""
    if stats.scale == 0 and stats.integer_digits <= INT64_DIGITS:
        return "int64"
    digits = stats.integer_digits + stats.scale
    if digits > DECIMAL_DIGITS:
        return "string"
    return f"decimal({INT64_DIGITS if digits <= INT64_DIGITS else DECIMAL_DIGITS},{stats.scale})"


_PIN_TAGS = {
    "string": ("S", "N"),
    "boolean": ("BOOL",),
    "binary": ("B",),
    "json": ("M", "L"),
    "list<string>": ("SS", "NS"),
    "list<binary>": ("BS",),
}
_DECIMAL = re.compile(r"decimal\(([1-9][0-9]?),(0|[1-9][0-9]?)\)").fullmatch


def tags_of_type(kind: str) -> tuple[str, ...]:
    """List the DynamoDB types that a column of this type can hold; empty for an unknown type."""
    if kind in _PIN_TAGS:
        return _PIN_TAGS[kind]
    element = kind.removeprefix("list<").removesuffix(">")
    match = _DECIMAL(element)
    is_decimal = match and int(match[2]) <= int(match[1]) <= DECIMAL_DIGITS
    if element != "int64" and not is_decimal:
        return ()
    return ("NS",) if kind == f"list<{element}>" else ("N",) if kind == element else ()


def _main_tag(stats: AttributeStats, among: Iterable[str] | None = None) -> str | None:
    tags = [(count, tag) for tag, count in stats.tags.items() if tag != "NULL"]
    return max((t for t in tags if among is None or t[1] in among), default=(0, None))[1]


def columns_of(
    stats: Stats,
    prior: Iterable[Column] = (),
    *,
    keep_tags: bool = False,
    pins: Mapping[str, str] | None = None,
    limit: int | None = None,
    names: Mapping[str, str] | None = None,
) -> list[Column]:
    """Derive typed columns from statistics, sorted by name; `limit`: see `chosen_attributes`.

    A column name in `prior` stays with its attribute, and so does its tag while values of that tag
    remain; with `keep_tags` always, which new rows of an already typed table need. An attribute
    with NULL only is a string column. Names are lower case: Athena, Glue and DuckDB do not
    distinguish `a` from `A`. `pins`: types by attribute that override the statistics. `names`:
    column names by attribute that override those in `prior`.
    """
    before = {column.attribute: column for column in prior}
    chosen = chosen_attributes(stats, before, keep=keep_tags, pins=pins or {}, limit=limit)
    column_names = name_attributes(chosen, join_names(names or {}, before.values()))
    columns = []
    for attribute in chosen:
        values = stats[attribute]
        pin = (pins or {}).get(attribute)
        tags = tags_of_type(pin) if pin else None
        kept = before.get(attribute)
        if (
            kept
            and not keep_tags
            and (not values.tags[kept.tag] or (tags and kept.tag not in tags))
        ):
            kept = None
        tag = kept.tag if kept else _main_tag(values, tags) or (tags or "S")[0]
        kind = pin or _natural_type(tag, values)
        columns.append(Column(column_names[attribute], attribute, tag, kind, pin is not None))
    return sorted(columns, key=lambda column: column.name)


def chosen_attributes(
    stats: Stats,
    prior: Mapping[str, Column],
    *,
    keep: bool,
    pins: Mapping[str, str],
    limit: int | None,
) -> list[str]:
    """Choose the attributes with columns: all, or above the limit those with the most values.

    Pinned ones come first. An attribute with a column loses it only to one with twice as many
    values, with `keep` to none, so that changing attributes do not change a table's schema with
    each publication. `limit` None: `MAX_COLUMNS`, or the table's present number if greater.
    """
    known = stats.keys() & prior.keys()
    most = max(MAX_COLUMNS, len(known)) if limit is None else limit
    if keep:
        most = max(most, len(known))
    if len(stats) <= most:
        return list(stats)

    def rank(attribute: str) -> tuple[bool, bool, int, str]:
        values = sum(n for tag, n in stats[attribute].tags.items() if tag != "NULL")
        has_column = attribute in known
        return (
            keep and not has_column,
            attribute not in pins,
            -2 * values if has_column else -values,
            attribute,
        )

    return sorted(stats, key=rank)[:most]


def without_columns(columns: Iterable[Column], stats: Stats) -> dict[str, int]:
    """Return the attributes without a column, with their numbers of values."""
    shown = {column.attribute for column in columns}
    return {name: sum(seen.tags.values()) for name, seen in stats.items() if name not in shown}


def join_names(names: Mapping[str, str], columns: Iterable[Column]) -> dict[str, str]:
    """Add the names of columns of other attributes to names by attribute, if they are free."""
    taken = set(names.values())
    more = {c.attribute: c.name for c in columns if c.name not in taken}
    return {**more, **names}


def _natural_type(tag: str, stats: AttributeStats) -> str:
    if tag == "N":
        return number_type(stats)
    return f"list<{number_type(stats)}>" if tag == "NS" else _FIXED_TYPES[tag]


def carry_widths(stats: Stats, prior: Stats) -> None:
    """Widen the numbers of `stats` to those of `prior`: types never narrow."""
    for attribute in stats.keys() & prior.keys():
        current, former = stats[attribute], prior[attribute]
        current.integer_digits = max(current.integer_digits, former.integer_digits)
        current.scale = max(current.scale, former.scale)


_INT64 = 2**63


def number_fits(kind: str, number: str) -> bool:
    """Whether a scalar type represents a canonical number exactly."""
    value = Decimal(number)
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # canonical numbers are finite
    if kind == "int64":
        return value.adjusted() < 20 and value == int(value) and -_INT64 <= value < _INT64
    match = _DECIMAL(kind)
    if not match or not value:
        return True
    precision, scale = int(match[1]), int(match[2])
    return -exponent <= scale and len(digits) + exponent <= precision - scale


def too_narrow(column: Column, stats: AttributeStats) -> bool:
    """Whether a number in the statistics may not fit a pinned column."""
    if not column.pinned or column.tag not in ("N", "NS"):
        return False
    kind = column.type.removeprefix("list<").removesuffix(">")
    if kind == "int64":
        return number_type(stats) != "int64"
    match = _DECIMAL(kind)
    if not match:
        return False
    precision, scale = int(match[1]), int(match[2])
    return stats.scale > scale or stats.integer_digits > precision - scale


@dataclass(frozen=True)
class ColumnChange:
    """One difference between two versions of a table's columns; None: no such column."""

    kind: Literal["added", "widened", "retyped", "gone"]
    attribute: str
    before: Column | None
    after: Column | None


def column_changes(before: Iterable[Column], after: Iterable[Column]) -> list[ColumnChange]:
    """Compare two versions of a table's columns, sorted by attribute."""
    old_columns = {column.attribute: column for column in before}
    new_columns = {column.attribute: column for column in after}
    changes = []
    for attribute in sorted(old_columns.keys() | new_columns.keys()):
        old, new = old_columns.get(attribute), new_columns.get(attribute)
        if old is None:
            changes.append(ColumnChange("added", attribute, None, new))
        elif new is None:
            changes.append(ColumnChange("gone", attribute, old, None))
        elif (old.tag, old.type) != (new.tag, new.type):
            inferred = old.tag == new.tag and not (old.pinned or new.pinned)
            kind = "widened" if inferred else "retyped"
            changes.append(ColumnChange(kind, attribute, old, new))
    return changes


@dataclass(frozen=True)
class TypeConflict:
    """An attribute with values that its column cannot hold.

    `values`: number of all values by DynamoDB type; `rescued`: of those in the rescue column.
    """

    attribute: str
    column: Column
    values: dict[str, int]
    rescued: int


def type_conflicts(
    columns: Iterable[Column], stats: Stats, misfits: Mapping[str, int]
) -> list[TypeConflict]:
    """List attributes with rescued values; `misfits`: counts of numbers that do not fit a pin."""
    conflicts = []
    for column in columns:
        values = {t: n for t, n in sorted(stats[column.attribute].tags.items()) if t != "NULL"}
        others = sum(n for tag, n in values.items() if tag != column.tag)
        rescued = others + misfits.get(column.attribute, 0)
        if rescued:
            conflicts.append(TypeConflict(column.attribute, column, values, rescued))
    return conflicts


def name_attributes(attributes: Iterable[str], names: dict[str, str]) -> dict[str, str]:
    """Add a free column name to `names` for each attribute without one."""
    taken = {*names.values(), *SYSTEM_COLUMNS, *VIEW_COLUMNS}
    fresh = [a for a in attributes if a not in names]
    for attribute in sorted(fresh, key=lambda a: (a != _plain_name(a), a)):
        name = _plain_name(attribute)
        digest = hashlib.sha256(attribute.encode()).hexdigest()
        if not name or name in taken or len(name) > MAX_COLUMN_NAME:
            # A long one gets more of its hash, so that its name does not depend on the others.
            shortest = 6 if len(name) <= MAX_COLUMN_NAME else _LONG_NAME_DIGITS
            candidates = (_shortened(name, digest[:length]) for length in range(shortest, 65))
            name = next(candidate for candidate in candidates if candidate not in taken)
        names[attribute] = name
        taken.add(name)
    return names


def _shortened(name: str, digest: str) -> str:
    return f"{name[: MAX_COLUMN_NAME - 1 - len(digest)]}_{digest}"


def _plain_name(attribute: str) -> str:
    """Convert to lower case and to characters that Iceberg writes unescaped in Parquet files."""
    name = re.sub(r"[^a-z0-9_]", "_", attribute.lower())
    return f"_{name}" if name[:1].isdigit() else name
