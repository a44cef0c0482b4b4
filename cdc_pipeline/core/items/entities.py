"""Entities: the kinds of items in one table of single-table design, told apart by attributes."""

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
"""How the names of other assets of a table begin."""

MAX_DEPTH = 31
"""DynamoDB nests documents 32 levels deep, the top-level attribute included."""

Item = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Condition:
    """What a top-level attribute of an entity's items is. Exactly one of the three is given.

    `equals`: canonical typed values, `("S", "order")` or `("N", "7")`. `prefix`: a text begins with
    it. `regex`: a text matches it as a whole (Python's `re`).
    """

    attribute: str
    equals: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    regex: str = ""

    def test(self) -> Callable[[Item], bool]:
        """A function that tells whether a canonical item meets the condition."""
        name, equals, prefix = self.attribute, frozenset(self.equals), self.prefix
        if equals:
            return lambda item: name in item and _scalar(item[name]) in equals
        if prefix:
            return lambda item: name in item and str(item[name].get("S", "")).startswith(prefix)
        matches = re.compile(self.regex).fullmatch
        return lambda item: "S" in item.get(name, ()) and matches(item[name]["S"]) is not None

    def implies(self, other: "Condition") -> bool:
        """Whether what meets this condition is known to meet the other; False: not known."""
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
    """One kind of item: those that meet all conditions and are of no entity before this one.

    `depth`: so many levels of nested maps become columns of their own.
    """

    name: str
    conditions: tuple[Condition, ...]
    depth: int = 0

    def hides(self, later: "Entity") -> bool:
        """Whether every item of an entity behind this one is known to be of this one."""
        return all(any(c.implies(mine) for c in later.conditions) for mine in self.conditions)


def classifier(entities: Sequence[Entity]) -> Callable[[Item], str | None]:
    """A function that names the entity of a canonical item: the first that matches, or None."""
    tests = [(entity.name, [c.test() for c in entity.conditions]) for entity in entities]

    def classify(item: Item) -> str | None:
        for name, conditions in tests:
            if all(test(item) for test in conditions):
                return name
        return None

    return classify


def flatten(item: Item, depth: int, keep: Collection[str] = ()) -> dict[str, Any]:
    """A canonical item with nested maps taken apart: `address` becomes `address.city`, ...

    `depth` levels of maps are; what is deeper stays a map, and so do empty maps and attributes to
    `keep`. Dots and backslashes in attributes' own names are escaped by a backslash, so that no two
    paths have one name, and nothing of the item is lost.
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
    """An attribute's name as a part of a dotted one."""
    return name.replace("\\", "\\\\").replace(".", "\\.")


def rules_mark(entities: Iterable[Entity], keep: Iterable[str] = ()) -> str:
    """Changes when the same items would be split or flattened in another way."""
    rules = [[asdict(entity) for entity in entities], sorted(keep)]
    return hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:32]


def unreachable(entities: Sequence[Entity]) -> tuple[Entity, Entity] | None:
    """An entity that no item can be of, and the one before it that takes them all."""
    for place, later in enumerate(entities):
        for earlier in entities[:place]:
            if earlier.hides(later):
                return later, earlier
    return None
