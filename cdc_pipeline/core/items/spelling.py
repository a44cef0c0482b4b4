"""Spelling of items directly from their JSON text, by templates of their shapes.

Most items differ only in their strings and have the same names, types and nesting: one shape.
`core.items.attributes` spells a shape once, with a marker in place of each string; the result, with
sorted names, is the template of all texts of that shape. For each text the steps left are: extract
its strings, find its shape, and make numbers, binaries and sets canonical.
"""

import json
import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from cdc_pipeline.core.errors import UnreadableError
from cdc_pipeline.core.items.attributes import CANONICAL, Spelling, canonical_number, quoted

_LONGEST = 32_768
_LEARNT_CHARACTERS = 2_000_000
# A template costs as much as ten texts spelled by the definition.
_OFTEN = 8

# A string after a colon; the same with escapes, or all strings of a set. Names never match.
_STRING = re.compile(r'":"([^"]*)"')
_STRINGS = re.compile(r'":\[?"([^"\\]*+(?:(?:\\.|",")[^"\\]*+)*+)"')
# Canonical numbers, each up to a quote: stricter than needed, to avoid counting digits.
_USUAL_NUMBERS = re.compile(
    r'(?:(?:-?(?:[1-9][0-9]{0,17}|0(?=\.))(?:\.[0-9]{0,17}(?<=[1-9]))?|0)")*'
).fullmatch
# With six more digits it is a canonical number and canonical base64, too: valid for any type of
# string.
_MARK = "7391482650"
_MARKER = re.compile(f"{_MARK}[0-9]{{6}}")
_SLOT = re.compile(rf'\{{"(S|N|B|SS|NS|BS)":\[?"{_MARK}([0-9]{{6}})"\]?\}}')

_Strings = Sequence[str]


class _Shape(NamedTuple):
    """Template of texts; numbers in it are indexes of strings in the text's order."""

    typed: list[str]
    plain: list[str]
    order: Callable[[_Strings], tuple[str, ...]]
    numbers: tuple[int, ...]
    pick_numbers: Callable[[_Strings], tuple[str, ...]]
    binaries: tuple[int, ...]
    sets: tuple[tuple[str, int], ...]
    number_sets: tuple[int, ...]


class Speller:
    """Equivalent of `definition`, `spell_item` or `spell_value`, with text as its input."""

    def __init__(self, definition: Callable[[Any], Spelling]) -> None:
        self._definition = definition
        self._shapes: dict[str, _Shape] = {}
        self._met: dict[str, int] = {}
        self._learnt = 0

    def spell(self, text: str) -> Spelling | None:
        """Return both spellings of a JSON text, or None: the caller must use the definition.

        The text must be JSON (already parsed once). None: a rare shape, an unusual spelling, or an
        invalid value.
        """
        if len(text) > _LONGEST:
            return None
        escaped = "\\" in text
        pattern = _STRINGS if escaped or '":["' in text else _STRING
        parts = pattern.split(text)
        # The separator never occurs in JSON.
        skeleton, strings = "\0".join(parts[::2]), parts[1::2]
        shape = self._shapes.get(skeleton) or self._learn(skeleton, text, pattern)
        if shape is None or not _make_canonical(shape, strings, escaped):
            return None
        return _fill(shape, strings)

    def _learn(self, skeleton: str, text: str, pattern: re.Pattern[str]) -> _Shape | None:
        """Return the template of a frequent shape; where names are data, most shapes are rare."""
        met = self._met.get(skeleton, 0) + 1
        self._learnt += len(text) if met == _OFTEN else len(skeleton) if met == 1 else 0
        if self._learnt > _LEARNT_CHARACTERS:
            # Shapes in use return soon.
            self._met.clear()
            self._shapes.clear()
            self._learnt = len(text)
        self._met[skeleton] = met
        shape = self._make_shape(text, pattern) if met == _OFTEN else None
        if shape:
            self._shapes[skeleton] = shape
        return shape

    def _make_shape(self, text: str, pattern: re.Pattern[str]) -> _Shape | None:
        marked, count = _mark(text, pattern)
        try:
            typed, plain = self._definition(json.loads(marked))
        except (UnreadableError, RecursionError, ValueError):
            return None
        slots = [(tag, int(place)) for tag, place in _SLOT.findall(typed)]
        if marked.count(_MARK) != count or len(slots) != count:
            return None
        numbers = _of("N", slots)
        return _Shape(
            typed=_template(typed),
            plain=_template(plain),
            order=_picker([place for _, place in slots]),
            numbers=numbers,
            pick_numbers=_picker(numbers),
            binaries=_of("B", slots),
            sets=tuple(slot for slot in slots if len(slot[0]) == 2),
            number_sets=tuple(i for i, (tag, _) in enumerate(slots) if tag == "NS"),
        )


def _mark(text: str, pattern: re.Pattern[str]) -> tuple[str, int]:
    """Return the text with markers for strings, and their number."""
    pieces, end, count = [], 0, 0
    for count, found in enumerate(pattern.finditer(text), 1):
        pieces += text[end : found.start(1)], f"{_MARK}{count - 1:06d}"
        end = found.end(1)
    return "".join([*pieces, text[end:]]), count


def _of(wanted: str, slots: list[tuple[str, int]]) -> tuple[int, ...]:
    return tuple(place for tag, place in slots if tag == wanted)


def _picker(places: Sequence[int]) -> Callable[[_Strings], tuple[str, ...]]:
    if not places:
        return lambda strings: ()
    if len(places) == 1:  # itemgetter returns no tuple for one index
        (place,) = places
        return lambda strings: (strings[place],)
    return itemgetter(*places)


def _template(spelled: str) -> list[str]:
    """Return the parts between strings, with empty slots for the strings."""
    pieces = _MARKER.split(spelled)
    template = [""] * (2 * len(pieces) - 1)
    template[::2] = pieces
    return template


def _make_canonical(shape: _Shape, strings: list[str], escaped: bool) -> bool:
    """Make strings canonical by their types; False if impossible."""
    try:
        if escaped:
            _make_escapes_canonical(strings)
        if shape.numbers and not _USUAL_NUMBERS('"'.join((*shape.pick_numbers(strings), ""))):
            for place in shape.numbers:
                strings[place] = canonical_number(strings[place])
        for place in shape.binaries:
            strings[place] = CANONICAL["B"](strings[place])
        for tag, place in shape.sets:
            strings[place] = '","'.join(CANONICAL[tag](strings[place].split('","')))
    except (UnreadableError, ValueError):
        return False
    return True


def _make_escapes_canonical(strings: list[str]) -> None:
    """Raises `ValueError` for sets of several strings, because escapes would change their order."""
    for place, string in enumerate(strings):
        if "\\" in string:
            strings[place] = quoted(json.loads(f'"{string}"'))[1:-1]


def _fill(shape: _Shape, strings: list[str]) -> Spelling:
    values = shape.order(strings)
    typed, plain = shape.typed.copy(), shape.plain.copy()
    typed[1::2] = plain[1::2] = values
    for place in shape.number_sets:
        plain[2 * place + 1] = values[place].replace('"', "")
    return "".join(typed), "".join(plain)
