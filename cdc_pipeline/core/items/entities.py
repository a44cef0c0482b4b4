"""Entities: the kinds of items in a table of single-table design, defined by attributes."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

RESERVED_ENTITIES = (
    *("pitr_export", "raw_stream", "cdc", "current_state", "history", "ttl_archive"),
    *("dynamodb", "snapshot", "tombstones", "firehose"),
)
"""Names of a table's own views, assets and Iceberg tables."""

RESERVED_PREFIXES = ("replica_", "search_")
"""Prefixes of the names of other assets of a table."""

MAX_DEPTH = 31
"""DynamoDB nests documents 32 levels deep, the top-level attribute included."""

Item = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Condition:
    """Condition on a top-level attribute of an entity's items: exactly one of three kinds.

    `equals`: canonical typed values, `("S", "order")` or `("N", "7")`. `prefix`: beginning of a
    text. `regex`: matches a whole text (Python's `re`).
    """

    attribute: str
    equals: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    regex: str = ""

    def test(self) -> Callable[[Item], bool]:
        """Return a predicate: whether a canonical item meets the condition."""
        name, equals, prefix = self.attribute, frozenset(self.equals), self.prefix
        if equals:
            return lambda item: name in item and _scalar(item[name]) in equals
        if prefix:
            return lambda item: name in item and str(item[name].get("S", "")).startswith(prefix)
        matches = re.compile(self.regex).fullmatch
        return lambda item: "S" in item.get(name, ()) and matches(item[name]["S"]) is not None

    def implies(self, other: "Condition") -> bool:
        """Whether all items of this condition provably meet the other; False: unknown."""
        if self == other:
            return True
        if self.attribute != other.attribute:
            return False
        if self.equals:
            test = other.test()
            return all(test({self.attribute: {tag: text}}) for tag, text in self.equals)
        return bool(other.prefix) and self.prefix.startswith(other.prefix)


def _scalar(value: Mapping[str, Any]) -> tuple[str, Any] | None:
    ((tag, content),) = value.items()
    return (tag, content) if tag in ("S", "N") else None


@dataclass(frozen=True)
class Entity:
    """One kind of item: those that meet all conditions and belong to no earlier entity.

    `depth`: number of levels of nested maps that become columns of their own.
    """

    name: str
    conditions: tuple[Condition, ...]
    depth: int = 0

    def hides(self, later: "Entity") -> bool:
        """Whether all items of a later entity provably belong to this one."""
        return all(any(c.implies(mine) for c in later.conditions) for mine in self.conditions)


def classifier(entities: Sequence[Entity]) -> Callable[[Item], str | None]:
    """Return a function from a canonical item to its entity: the first that matches, or None."""
    tests = [(entity.name, [c.test() for c in entity.conditions]) for entity in entities]

    def classify(item: Item) -> str | None:
        for name, conditions in tests:
            if all(test(item) for test in conditions):
                return name
        return None

    return classify


def flatten(item: Item, depth: int, keep: Collection[str] = ()) -> dict[str, Any]:
    """Flatten the nested maps of a canonical item: `address` becomes `address.city`, ...

    `depth`: number of levels; deeper maps, empty maps and attributes in `keep` stay maps. Dots and
    backslashes in attribute names are escaped by a backslash, so that names of paths are unique and
    nothing of the item is lost.
    """
    if not depth:
        return dict(item)
    flat: dict[str, Any] = {}
    for name, value in item.items():
        _add(flat, escaped(name), value, 0 if name in keep else depth)
    return flat


def _add(flat: dict[str, Any], path: str, value: Mapping[str, Any], depth: int) -> None:
    members = value.get("M") if depth else None
    if not members:
        flat[path] = value
        return
    for name, member in members.items():
        _add(flat, f"{path}.{escaped(name)}", member, depth - 1)


def escaped(name: str) -> str:
    """Escape an attribute's name as a part of a dotted name."""
    return name.replace("\\", "\\\\").replace(".", "\\.")


def rules_mark(entities: Iterable[Entity], keep: Iterable[str] = ()) -> str:
    """Return a hash of the rules that split and flatten items."""
    rules = [[asdict(entity) for entity in entities], sorted(keep)]
    return hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:32]


def unreachable(entities: Sequence[Entity]) -> tuple[Entity, Entity] | None:
    """Find an entity without possible items, and the earlier one that has them all."""
    for position, later in enumerate(entities):
        for earlier in entities[:position]:
            if earlier.hides(later):
                return later, earlier
    return None
