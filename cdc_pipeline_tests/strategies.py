"""Hypothesis strategies: DynamoDB numbers, attribute values and items that break naive copies."""

import base64
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

HOSTILE_NAMES = [
    "S",
    "N",
    "M",
    "L",
    "BOOL",
    "NULL",
    "",
    "a.b",
    "`",
    "日本",
    "中国",
    "Id",
    "id",
    "$n",
    "İ",
    "K",
    "_key",
    "_item",
    "_order_key",
    "_rescued",
    "_write_time_us",
    "select",
    "a b",
    '"',
    "'",
    "1",
    "item_key",
    "ID",
    "_",
    "é",
    "\x00",
    "day",
]

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
names = st.sampled_from(HOSTILE_NAMES) | texts


def _spell(digits: str, exponent: int, negative: bool) -> str:
    return f"{'-' if negative else ''}{digits}E{exponent:+d}"


@st.composite
def _extreme_numbers(draw: st.DrawFn) -> str:
    """Up to 38 digits whose first one stands anywhere DynamoDB allows."""
    digits = draw(st.from_regex(r"[1-9][0-9]{0,37}", fullmatch=True))
    first = draw(st.integers(-130, 125))
    return _spell(digits, first - len(digits) + 1, draw(st.booleans()))


numbers = st.one_of(
    st.integers(-(10**38) + 1, 10**38 - 1).map(str),
    st.integers(-1000, 1000).map(str),
    st.decimals(-(10**6), 10**6, places=3).map(str),
    _extreme_numbers(),
    st.sampled_from(
        [
            "0",
            "-0",
            "0.0",
            "1E-130",
            "9.9999999999999999999999999999999999999E+125",
            "1E+37",
            "9" * 38,
            "0." + "9" * 38,
            "123456789012345678",
            "1234567890123456789",
            "-1E-38",
        ]
    ),
)
"""Spellings of numbers that DynamoDB stores."""


@st.composite
def respelled(draw: st.DrawFn, number: str) -> str:
    """Another spelling of the same value."""
    sign, digits, exponent = Decimal(number).as_tuple()
    assert isinstance(exponent, int)
    zeros = draw(st.integers(0, 3))
    text = "".join(map(str, digits)) + "0" * zeros
    text, exponent = "0" * draw(st.integers(0, 3)) + text, exponent - zeros
    plus = draw(st.sampled_from(["", "+"])) if not sign else "-"
    if -len(text) < exponent <= 0 and draw(st.booleans()):
        whole, fraction = text[: len(text) + exponent], text[len(text) + exponent :]
        return f"{plus}{whole}.{fraction}" if fraction else plus + whole
    return f"{plus}{text}{draw(st.sampled_from('eE'))}{exponent}"


binaries = st.binary(max_size=5).map(lambda data: base64.b64encode(data).decode())

_scalars = st.one_of(
    texts.map(lambda v: {"S": v}),
    numbers.map(lambda v: {"N": v}),
    binaries.map(lambda v: {"B": v}),
    st.booleans().map(lambda v: {"BOOL": v}),
    st.just({"NULL": True}),
    st.lists(texts, min_size=1, max_size=4).map(lambda v: {"SS": v}),
    st.lists(numbers, min_size=1, max_size=4).map(lambda v: {"NS": v}),
    st.lists(binaries, min_size=1, max_size=4).map(lambda v: {"BS": v}),
)


def _nest(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.lists(children, max_size=3).map(lambda v: {"L": v}),
        st.dictionaries(names, children, max_size=3).map(lambda v: {"M": v}),
    )


@st.composite
def _deep(draw: st.DrawFn) -> dict[str, Any]:
    """A value 32 levels down, DynamoDB's limit."""
    value: dict[str, Any] = draw(_scalars)
    for is_map in draw(st.lists(st.booleans(), min_size=31, max_size=31)):
        value = {"M": {"": value}} if is_map else {"L": [value]}
    return value


values = st.one_of(_scalars, st.recursive(_scalars, _nest, max_leaves=6), _deep())
"""Typed attribute values as DynamoDB's JSON spells them, not yet canonical."""

items = st.dictionaries(names, values, max_size=6)
"""Items with hostile attribute names."""
