"""Spelling items straight from their JSON text, learnt shape by shape.

Items mostly differ in their strings alone: the same names, the same types, the same nesting. Such a
shape is spelled once by `core.items.attributes`, with a marker in place of each string, and what
comes out is the template of all texts of that shape; whatever order their names come in, the
template has them sorted. What is left for each text is to cut its strings out, to look its shape
up, and to make numbers, binaries and sets canonical.
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
# Learning a shape costs as much as ten texts by the definition.
_OFTEN = 8

# A string after a colon, and the same with escapes or all strings of a set: no name is one.
_STRING = re.compile(r'":"([^"]*)"')
_STRINGS = re.compile(r'":\[?"([^"\\]*+(?:(?:\\.|",")[^"\\]*+)*+)"')
# Canonical numbers, each up to a quote: a little stricter than need be, so as not to count digits.
_USUAL_NUMBERS = re.compile(
    r'(?:(?:-?(?:[1-9][0-9]{0,17}|0(?=\.))(?:\.[0-9]{0,17}(?<=[1-9]))?|0)")*'
).fullmatch
# With six digits more it is a canonical number and canonical base64 too: any string to the
# definition.
_MARK = "7391482650"
_MARKER = re.compile(f"{_MARK}[0-9]{{6}}")
_SLOT = re.compile(rf'\{{"(S|N|B|SS|NS|BS)":\[?"{_MARK}([0-9]{{6}})"\]?\}}')

_Strings = Sequence[str]


class _Shape(NamedTuple):
    """How to spell a text by its strings; numbers are places among these, as the text has them."""

    typed: list[str]
    plain: list[str]
    order: Callable[[_Strings], tuple[str, ...]]
    numbers: tuple[int, ...]
    pick_numbers: Callable[[_Strings], tuple[str, ...]]
    binaries: tuple[int, ...]
    sets: tuple[tuple[str, int], ...]
    number_sets: tuple[int, ...]


class Speller:
    """A function like the `definition` it is given, `spell_item` or `spell_value`, but of text."""

    def __init__(self, definition: Callable[[Any], Spelling]) -> None:
        self._definition = definition
        self._shapes: dict[str, _Shape] = {}
        self._met: dict[str, int] = {}
        self._learnt = 0

    def spell(self, text: str) -> Spelling | None:
        """Both spellings of what a JSON text says, or None: ask the definition.

        The text must be JSON (a parser has passed over it). None comes for shapes not met often
        enough, for whatever is unusual, and for all that is wrong with a value.
        """
        if len(text) > _LONGEST:
            return None
        escaped = "\\" in text
        pattern = _STRINGS if escaped or '":["' in text else _STRING
        parts = pattern.split(text)
        # No JSON text holds the separator.
        skeleton, strings = "\0".join(parts[::2]), parts[1::2]
        shape = self._shapes.get(skeleton) or self._learn(skeleton, text, pattern)
        if shape is None or not _make_canonical(shape, strings, escaped):
            return None
        return _fill(shape, strings)

    def _learn(self, skeleton: str, text: str, pattern: re.Pattern[str]) -> _Shape | None:
        """A shape that is met often; where names are data most are met a few times only."""
        met = self._met.get(skeleton, 0) + 1
        self._learnt += len(text) if met == _OFTEN else len(skeleton) if met == 1 else 0
        if self._learnt > _LEARNT_CHARACTERS:
            # What is in use is soon learnt again.
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
    """The text with markers for strings, and their number."""
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
    if len(places) == 1:  # of one, itemgetter gives no tuple
        (place,) = places
        return lambda strings: (strings[place],)
    return itemgetter(*places)


def _template(spelled: str) -> list[str]:
    """What stands between strings, with room for them."""
    pieces = _MARKER.split(spelled)
    template = [""] * (2 * len(pieces) - 1)
    template[::2] = pieces
    return template


def _make_canonical(shape: _Shape, strings: list[str], escaped: bool) -> bool:
    """Make strings canonical, as their types have it; False where that is not possible."""
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
    """Raises `ValueError` for sets of several strings: escapes would hide where they sort."""
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
