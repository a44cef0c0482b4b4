"""DynamoDB attribute values: canonical typed JSON and plain JSON.

An attribute value is DynamoDB's tagged JSON, `{"N": "12"}`, binary as base64 text
(botocore model of `AttributeValue`). Numbers are text everywhere: DynamoDB stores 38 significant
digits between 1E-130 and 9.99E+125, more than a float or a 64-bit integer can represent.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, Inexact, InvalidOperation
from json.encoder import encode_basestring
from typing import Any

from cdc_pipeline.core.errors import UnreadableError

AttributeValue = Mapping[str, Any]
Item = Mapping[str, AttributeValue]

TOO_DEEP = "a value nested deeper than DynamoDB allows"
_MAX_DIGITS = 38
# Most numbers are canonical already; up to 38 characters cannot be too many digits.
_CANONICAL_NUMBER = re.compile(r"0|-?(?:0\.[0-9]*[1-9]|[1-9][0-9]*(?:\.[0-9]*[1-9])?)").fullmatch
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?").fullmatch
_CANONICAL_BASE64 = re.compile(r"[A-Za-z0-9+/]*(?:[AQgw]==|[AEIMQUYcgkosw048]=)?").fullmatch
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_EXACT = Context(prec=200, traps=[Inexact, InvalidOperation])


def canonical_number(text: Any) -> str:
    """Return the canonical spelling of a DynamoDB number, equal for equal values.

    Plain digits while the number fits 38 places on either side of the point, else scientific
    (`1.5E+100`), always a valid JSON number token. Raises `UnreadableError` for values that
    DynamoDB cannot store.
    """
    if not isinstance(text, str):
        raise UnreadableError("a number that is not text")
    if len(text) <= _MAX_DIGITS and _CANONICAL_NUMBER(text):
        return text
    if not _NUMBER(text):  # Decimal also accepts spaces, underscores and other scripts' digits
        raise UnreadableError("a number that is not a decimal")
    try:
        number = Decimal(text).normalize(_EXACT)
    except InvalidOperation:
        raise UnreadableError("a number that is not a decimal") from None
    except Inexact:
        raise UnreadableError("a number beyond DynamoDB's range") from None
    if not number.is_finite():
        raise UnreadableError("a number that is not finite")
    if not number:
        return "0"
    _, digits, exponent = number.as_tuple()
    if len(digits) > _MAX_DIGITS:
        raise UnreadableError("a number of more than 38 digits")
    adjusted = number.adjusted()
    if not -130 <= adjusted <= 125:
        raise UnreadableError("a number beyond DynamoDB's range")
    if isinstance(exponent, int) and exponent >= -_MAX_DIGITS and adjusted < _MAX_DIGITS:
        return f"{number:f}"
    return str(number)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise UnreadableError("a string that is not text")
    return value


def _binary(value: Any) -> str:
    if not isinstance(value, str):
        raise UnreadableError("a binary that is not base64 text")
    if len(value) % 4 == 0 and _CANONICAL_BASE64(value):
        return value
    try:
        return base64.b64encode(base64.b64decode(value, validate=True)).decode()
    except (binascii.Error, ValueError):
        raise UnreadableError("a binary that is not base64 text") from None


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UnreadableError("a boolean that is neither true nor false")
    return value


def _null(value: Any) -> bool:
    if value is not True:
        raise UnreadableError("a NULL that is not true")
    return True


def _list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise UnreadableError("a list that is not an array")
    return [canonical_value(element) for element in value]


def _set_of(element: Callable[[Any], str], sort_key: Callable[[str], Any] | None) -> Callable:
    def canonical_set(value: Any) -> list[str]:
        if not isinstance(value, list) or not value:
            raise UnreadableError("a set that is not a filled array")
        if len(value) == 1:
            return [element(value[0])]
        return sorted({element(member) for member in value}, key=sort_key)

    return canonical_set


def canonical_item(item: Any) -> dict[str, dict[str, Any]]:
    """Return an item (or map) with sorted names, sorted sets, canonical numbers, at all depths."""
    if not isinstance(item, dict):
        raise UnreadableError("an item that is not an object")
    return {name: canonical_value(item[name]) for name in sorted(item)}


CANONICAL: dict[str, Callable[[Any], Any]] = {
    "S": _string,
    "N": canonical_number,
    "B": _binary,
    "BOOL": _boolean,
    "NULL": _null,
    "M": canonical_item,
    "L": _list,
    "SS": _set_of(_string, None),
    "NS": _set_of(canonical_number, Decimal),
    "BS": _set_of(_binary, base64.b64decode),
}
"""Functions that make a value's content canonical, by type; they raise `UnreadableError`."""


def canonical_value(value: Any) -> dict[str, Any]:
    """Return an attribute value in canonical form; raises `UnreadableError`."""
    if not isinstance(value, dict) or len(value) != 1:
        raise UnreadableError("an attribute value that is not one tagged value")
    ((tag, content),) = value.items()
    canonical = CANONICAL.get(tag)
    if canonical is None:
        raise UnreadableError("an unknown attribute type")
    return {tag: canonical(content)}


def to_json(value: Any) -> str:
    """Serialize to compact JSON with unescaped Unicode; identities are hashes of this spelling."""
    text = _encode(value)
    if not text.isascii():
        _refuse_lone_surrogates(text)
    return text


def _refuse_lone_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnreadableError("text that is not Unicode") from None


Spelling = tuple[str, str]
"""One value in two spellings: canonical typed JSON, and plain JSON."""


def spell_item(item: Any) -> Spelling:
    """Spell an item as canonical typed JSON and as plain JSON, as `canonical_item` defines them.

    In plain JSON numbers are number tokens with their exact decimal text, sets are arrays, binary
    is base64 text, NULL is null. One pass without `json` writes both texts: every change goes
    through this function, and `json` can write numbers only from floats or integers.
    """
    if not isinstance(item, dict):
        raise UnreadableError("an item that is not an object")
    typed: list[str] = []
    plain: list[str] = []
    for name in sorted(item):
        label = quoted(name)
        spelling = spell_value(item[name])
        typed.append(f"{label}:{spelling[0]}")
        plain.append(f"{label}:{spelling[1]}")
    return f"{{{','.join(typed)}}}", f"{{{','.join(plain)}}}"


def spell_value(value: Any) -> Spelling:
    """Spell one attribute value in both ways; raises `UnreadableError`."""
    if not isinstance(value, dict) or len(value) != 1:
        raise UnreadableError("an attribute value that is not one tagged value")
    ((tag, content),) = value.items()
    if tag == "S":
        text = quoted(_string(content))
        return f'{{"S":{text}}}', text
    if tag == "N":
        text = canonical_number(content)
        return f'{{"N":"{text}"}}', text
    if tag == "M":
        typed, plain = spell_item(content)
        return f'{{"M":{typed}}}', plain
    if tag == "L":
        if not isinstance(content, list):
            raise UnreadableError("a list that is not an array")
        spelled = [spell_value(element) for element in content]
        typed = ",".join(element[0] for element in spelled)
        return f'{{"L":[{typed}]}}', f"[{','.join(element[1] for element in spelled)}]"
    canonical = canonical_value(value)
    return to_json(canonical), plain_value(canonical)


def quoted(text: str) -> str:
    """Quote a string as canonical JSON; raises `UnreadableError` for lone surrogates."""
    json_text = encode_basestring(text)
    if not text.isascii():
        _refuse_lone_surrogates(text)
    return json_text


def plain_json(item: Item) -> str:
    """Convert a canonical item to plain JSON."""
    return spell_item(item)[1]


def plain_value(value: AttributeValue) -> str:
    """Convert one canonical attribute value to plain JSON."""
    ((tag, content),) = value.items()
    if tag in ("N", "M", "L"):
        return spell_value(value)[1]
    if tag == "NS":
        return f"[{','.join(content)}]"
    return "null" if tag == "NULL" else to_json(content)
