"""Attribute values as DynamoDB sees them: which are equal, which name one item, how big they are.

Apart from the package's own `core.items.attributes` on purpose: this is what that is tested
against.
"""

import hashlib
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

Item = dict[str, Any]


def _number(text: Any) -> Any:
    try:
        return Decimal(text)
    except (InvalidOperation, TypeError, ValueError):
        return text


def _comparable(value: Any) -> Any:
    """Equal for equal values; what is no attribute value is only equal to itself."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    ((tag, content),) = value.items()
    if tag == "N":
        return tag, _number(content)
    if tag == "M":
        return tag, {name: _comparable(inner) for name, inner in content.items()}
    if tag == "L":
        return tag, [_comparable(inner) for inner in content]
    if tag in ("SS", "BS"):
        return tag, frozenset(content)
    if tag == "NS":
        return tag, frozenset(map(_number, content))
    return tag, content


def same(one: Item | None, other: Item | None) -> bool:
    """Whether writing one over the other changes nothing."""
    if one is None or other is None:
        return one is other
    if one.keys() != other.keys():
        return False
    return all(
        value == other[name] or _comparable(value) == _comparable(other[name])
        for name, value in one.items()
    )


def key_of(item: Item, names: Iterable[str]) -> Item:
    """The key attributes of an item."""
    return {name: item[name] for name in names}


def identity(key: Item) -> tuple[Any, ...]:
    """Equal for keys of the same item (1 and 1.0)."""
    return tuple(map(_comparable, key.values()))


def hash_of(key: Item) -> int:
    """Where in the hash range [0, 2**32) the key's partition lies; the first attribute decides."""
    partition = _comparable(next(iter(key.values())))
    return int.from_bytes(hashlib.md5(str(partition).encode()).digest()[:4])


def size_of(item: Item) -> int:
    """The developer guide's item size: names in UTF-8 and values."""
    return sum(len(name.encode()) + _size(value) for name, value in item.items())


def _size(value: Any) -> int:
    if not isinstance(value, Mapping) or len(value) != 1:
        return 1
    ((tag, content),) = value.items()
    if tag == "S":
        return len(content.encode())
    if tag == "N":
        return 1 + (sum(map(str.isdigit, content)) + 1) // 2 + content.startswith("-")
    if tag == "B":
        return len(content) * 3 // 4 - content.count("=")
    if tag in ("SS", "NS", "BS"):
        return sum(_size({tag[0]: member}) for member in content)
    if tag == "M":
        return 3 + len(content) + size_of(content)
    if tag == "L":
        return 3 + sum(1 + _size(inner) for inner in content)
    return 1
