"""Compiled loops over typed DynamoDB JSON in byte buffers; what they do not know they refuse.

All are in one file, because numba's cache of compiled code notices changes of a function's own file
only. Everywhere: -1 (or False) says "not understood, ask the exact path", never "wrong".

Positions are indices into a `uint8` array. Text to be made canonical comes as whole lines with
their newline, which no rule below passes over: that is what ends every loop, whatever the bytes.
Scanned text is the canonical one already; there `end` is checked instead.
"""

# Numba calls intrinsics without their first parameter, and makes worse code of `in` than of `==`.
# pyright: reportCallIssue=false
# ruff: noqa: SIM109

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

S, N, B, BOOL, NULL, M, L, SS, NS, BS = range(10)
TAGS = ("S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS")

MAX_DEPTH = 64  # twice what DynamoDB allows
MAX_MEMBERS = 1 << 16

_QUOTE, _BACKSLASH, _COMMA, _COLON, _NEWLINE = 34, 92, 44, 58, 10
_MINUS, _DOT, _ZERO, _NINE, _EQUALS = 45, 46, 48, 57, 61
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = 123, 125, 91, 93
_MAX_NUMBER = 38
_HABITS = 128
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def _table(values: dict[int, int]) -> np.ndarray[Any, Any]:
    return np.array([values.get(byte, _NONE) for byte in range(256)], np.uint8)


_NONE = 255
_HEX = _table({ord(digit): int(digit, 16) for digit in "0123456789abcdefABCDEF"})
_SIX_BITS = _table({byte: place for place, byte in enumerate(_BASE64)})
_SHORT_ESCAPES = dict(zip('bfnrt"\\', '\b\f\n\r\t"\\', strict=True))
_SHORT = _table({ord(letter): ord(meant) for letter, meant in _SHORT_ESCAPES.items()})
_SHORT_OF = _table({ord(meant): ord(letter) for letter, meant in _SHORT_ESCAPES.items()})
_NULL_WORD = np.frombuffer(b"null    ", np.uint8)
_LOWER_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, with a cache on disk where there is a place for one."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only installation, and no folder of the user's own
        return numba.njit(nogil=True)(function)


# ------------------------------------------------------------------------------------- memory
#
# An index of an array may be negative, and Numba looks each time. These do not, and they take eight
# bytes at a time: half of the time that all this takes.


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any, bits: int) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.IntType(bits).as_pointer())


@intrinsic
def _at(_typing, array, index):
    """The byte at `index`, as a signed integer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], 8)
        return builder.zext(builder.load(place), ir.IntType(64))

    return types.int64(array, types.int64), generate


@intrinsic
def _put(_typing, array, index, byte):
    """Write a byte."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], 8)
        builder.store(builder.trunc(args[2], ir.IntType(8)), place)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def _eight(_typing, array, index):
    """The eight bytes from `index` on, the first one lowest."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], 64)
        loaded = builder.load(place)
        loaded.align = 1
        return loaded

    return types.uint64(array, types.int64), generate


@intrinsic
def _put_eight(_typing, array, index, word):
    """Write eight bytes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], 64)
        builder.store(args[2], place).align = 1
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate


@intrinsic
def _first_byte(_typing, word):
    """The place (0 to 7) of the lowest byte with a bit set, of a word that is not zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))
        return builder.lshr(zeros, ir.Constant(ir.IntType(64), 3))

    return types.int64(types.uint64), generate


def _spelled(text: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(text, "little"))


_STRING_FOLLOWS, _NUMBER_FOLLOWS = _spelled(b'":{"S":"'), _spelled(b'":{"N":"')
_BOOL_TAG, _NULL_TAG = _spelled(b'BOOL"'), _spelled(b'NULL"')
_TRUE, _FALSE = _spelled(b"true"), _spelled(b"false")
_FOUR_BYTES, _FIVE_BYTES = _spelled(b"\xff" * 4), _spelled(b"\xff" * 5)
_MEMBER_FOLLOWS, _THREE_BYTES = _spelled(b'"},'), _spelled(b"\xff\xff\xff")
_ONES = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_QUOTES = np.uint64(0x2222222222222222)
_BACKSLASHES = np.uint64(0x5C5C5C5C5C5C5C5C)
_BLANKS = np.uint64(0x2020202020202020)


@_compiled
def _quotes(word):
    """The high bits of the bytes that are a quote or backslash; exact up to the first of them."""
    quote, backslash = word ^ _QUOTES, word ^ _BACKSLASHES
    return (((quote - _ONES) & ~quote) | ((backslash - _ONES) & ~backslash)) & _HIGH


@_compiled
def _special(word):
    """As `_quotes`, control characters included."""
    return _quotes(word) | ((word - _BLANKS) & ~word & _HIGH)


@_compiled
def _copy(data, i, end, out, o):
    """Copy `data[i:end]` (and up to 7 bytes more) to `out`; returns where it ends there."""
    size = end - i
    k = 0
    while k < size:
        _put_eight(out, o + k, _eight(data, i + k))
        k += 8
    return o + size


# ------------------------------------------------------------------------------------- tokens


@_compiled
def _blank(data, i):
    while _at(data, i) == 32 or _at(data, i) == 9 or _at(data, i) == 13:
        i += 1
    return i


@_compiled
def _tag(data, i):
    """Type tag that starts at `i`, and how long it is with its closing quote."""
    a, b = _at(data, i), _at(data, i + 1)
    if b == _QUOTE:
        if a == 83:
            return S, 2
        if a == 78:
            return N, 2
        if a == 77:
            return M, 2
        if a == 76:
            return L, 2
        if a == 66:
            return B, 2
        return -1, 0
    if b == 83 and _at(data, i + 2) == _QUOTE:
        if a == 83:
            return SS, 3
        if a == 78:
            return NS, 3
        if a == 66:
            return BS, 3
        return -1, 0
    word = _eight(data, i) & _FIVE_BYTES
    if word == _BOOL_TAG:
        return BOOL, 5
    if word == _NULL_TAG:
        return NULL, 5
    return -1, 0


@_compiled
def _four_hex(data, i):
    code = 0
    for k in range(4):
        digit = _at(_HEX, _at(data, i + k))
        if digit == _NONE:
            return -1
        code = code * 16 + digit
    return code


@_compiled
def _write_character(code, out, o):
    """UTF-8 of a code point."""
    if code < 0x80:
        _put(out, o, code)
        return o + 1
    if code < 0x800:
        _put(out, o, 0xC0 | (code >> 6))
        _put(out, o + 1, 0x80 | (code & 63))
        return o + 2
    if code < 0x10000:
        _put(out, o, 0xE0 | (code >> 12))
        _put(out, o + 1, 0x80 | ((code >> 6) & 63))
        _put(out, o + 2, 0x80 | (code & 63))
        return o + 3
    _put(out, o, 0xF0 | (code >> 18))
    _put(out, o + 1, 0x80 | ((code >> 12) & 63))
    _put(out, o + 2, 0x80 | ((code >> 6) & 63))
    _put(out, o + 3, 0x80 | (code & 63))
    return o + 4


@_compiled
def _unicode_escape(data, i, out, o):
    r"""`\uXXXX` (or a pair of them) at `i` in its canonical spelling."""
    code = _four_hex(data, i + 2)
    i += 6
    if 0xD800 <= code < 0xDC00:
        if _at(data, i) != _BACKSLASH or _at(data, i + 1) != 117:
            return -1, o
        low = _four_hex(data, i + 2)
        if low < 0xDC00 or low > 0xDFFF:
            return -1, o
        i += 6
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
    elif code < 0 or 0xDC00 <= code < 0xE000:
        return -1, o
    if code < 0x20 or code == _QUOTE or code == _BACKSLASH:
        _put(out, o, _BACKSLASH)
        if _at(_SHORT_OF, code) != _NONE:
            _put(out, o + 1, _at(_SHORT_OF, code))
            return i, o + 2
        _put(out, o + 1, 117)
        _put(out, o + 2, _ZERO)
        _put(out, o + 3, _ZERO)
        _put(out, o + 4, _at(_LOWER_HEX, code >> 4))
        _put(out, o + 5, _at(_LOWER_HEX, code & 15))
        return i, o + 6
    return i, _write_character(code, out, o)


@_compiled
def _copy_plain(data, i, out, o):
    """Copy up to the next quote, backslash or control character (and up to 7 bytes more)."""
    special = _special(_eight(data, i))
    while special == 0:
        _put_eight(out, o, _eight(data, i))
        i += 8
        o += 8
        special = _special(_eight(data, i))
    _put_eight(out, o, _eight(data, i))
    plain = _first_byte(special)
    return i + plain, o + plain


@_compiled
def _string(data, i, out, o):
    """A string from behind its opening quote to its closing one, in canonical spelling."""
    i, o = _copy_plain(data, i, out, o)
    while _at(data, i) == _BACKSLASH:
        c = _at(data, i + 1)
        if _at(_SHORT, c) != _NONE:
            _put(out, o, _BACKSLASH)
            _put(out, o + 1, c)
            o += 2
            i += 2
        elif c == 47:
            _put(out, o, 47)
            o += 1
            i += 2
        elif c == 117:
            i, o = _unicode_escape(data, i, out, o)
            if i < 0:
                return -1, o
        else:
            return -1, o
        i, o = _copy_plain(data, i, out, o)
    return (i if _at(data, i) == _QUOTE else -1), o


@_compiled
def _plain_string(data, i, out, o):
    """A string without escapes: one whose bytes sort as its characters do."""
    i, o = _copy_plain(data, i, out, o)
    return (i if _at(data, i) == _QUOTE else -1), o


@_compiled
def _is_digit(c):
    return _ZERO <= c <= _NINE


@_compiled
def _number(data, i, out, o):
    """A number that is spelled canonically, without exponent."""
    start = i
    if _at(data, i) == _MINUS:
        i += 1
    if _at(data, i) == _ZERO:
        i += 1
        if _at(data, i) != _DOT and (_at(data, i) != _QUOTE or i != start + 1):
            return -1, o
    else:
        first = i
        while _is_digit(_at(data, i)):
            i += 1
        if i == first:
            return -1, o
    if _at(data, i) == _DOT:
        i += 1
        first = i
        while _is_digit(_at(data, i)):
            i += 1
        if i == first or _at(data, i - 1) == _ZERO:
            return -1, o
    if _at(data, i) != _QUOTE or i - start > _MAX_NUMBER:
        return -1, o
    return i, _copy(data, start, i, out, o)


@_compiled
def _binary(data, i, out, o):
    """Canonical base64."""
    start = i
    while _at(_SIX_BITS, _at(data, i)) != _NONE:
        i += 1
    if _at(data, i) == _EQUALS:
        unused = 3
        last = i - 1
        i += 1
        if _at(data, i) == _EQUALS:
            unused = 15
            i += 1
        if last < start or _at(_SIX_BITS, _at(data, last)) & unused:
            return -1, o
    if _at(data, i) != _QUOTE or (i - start) % 4:
        return -1, o
    return i, _copy(data, start, i, out, o)


@_compiled
def _word(data, i, out, o, null):
    """`true`, or else `false` unless `null`."""
    word = _eight(data, i)
    if word & _FOUR_BYTES == _TRUE:
        size = 4
    elif not null and word & _FIVE_BYTES == _FALSE:
        size = 5
    else:
        return -1, o
    return i + size, _copy(data, i, i + size, out, o)


# ------------------------------------------------------------------------------------- order


@_compiled
def _compare_bytes(out, a, a_end, b, b_end):
    size = min(a_end - a, b_end - b)
    k = 0
    while k < size:
        differing = _eight(out, a + k) ^ _eight(out, b + k)
        if differing != 0:
            k += _first_byte(differing)
            if k < size:
                return -1 if _at(out, a + k) < _at(out, b + k) else 1
        k += 8
    return (a_end - a) - (b_end - b)


@_compiled
def _compare_base64(out, a, a_end, b, b_end):
    """As the bytes compare that they stand for: padding is less than any digit."""
    while a < a_end and b < b_end:
        if _at(out, a) != _at(out, b):
            # Padding is no digit, which 255 says: one more, and it is less than any.
            a_digit, b_digit = _at(_SIX_BITS, _at(out, a)), _at(_SIX_BITS, _at(out, b))
            return -1 if (a_digit + 1) & 255 < (b_digit + 1) & 255 else 1
        a += 1
        b += 1
    if a < a_end:
        return 1
    return -1 if b < b_end else 0


@_compiled
def _whole_digits(out, a, end):
    i = a
    while i < end and _at(out, i) != _DOT:
        i += 1
    return i - a


@_compiled
def _compare_numbers(out, a, a_end, b, b_end):
    """By value, of canonical numbers without exponents."""
    sign = 1
    if _at(out, a) == _MINUS:
        if _at(out, b) != _MINUS:
            return -1
        sign = -1
        a += 1
        b += 1
    elif _at(out, b) == _MINUS:
        return 1
    a_digits, b_digits = _whole_digits(out, a, a_end), _whole_digits(out, b, b_end)
    if a_digits != b_digits:
        return sign if a_digits > b_digits else -sign
    return sign * _compare_bytes(out, a, a_end, b, b_end)


@_compiled
def _compare(tag, out, a, a_end, b, b_end):
    if tag == NS:
        return _compare_numbers(out, a, a_end, b, b_end)
    if tag == BS:
        return _compare_base64(out, a, a_end, b, b_end)
    return _compare_bytes(out, a, a_end, b, b_end)


@_compiled
def _sort(tag, out, starts, ends, order, base, count):
    """Order `order[base:base + count]`, places in `starts` and `ends`; Shell's sort."""
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for k in range(base + gap, base + count):
            moved = order[k]
            at = k
            while at >= base + gap:
                other = order[at - gap]
                if _compare(tag, out, starts[other], ends[other], starts[moved], ends[moved]) <= 0:
                    break
                order[at] = other
                at -= gap
            order[at] = moved
        gap //= 3


@_compiled
def _set(data, i, tag, out, o, starts, ends, order, base):
    """A set from its bracket to behind the closing one, sorted and without repeats."""
    if _at(data, i) != _OPEN_LIST:
        return -1, o
    _put(out, o, _OPEN_LIST)
    o += 1
    i = _blank(data, i + 1)
    first, count, ascending = o, 0, True
    while True:
        if _at(data, i) != _QUOTE or base + count >= len(starts):
            return -1, o
        _put(out, o, _QUOTE)
        starts[base + count] = o + 1
        if tag == SS:
            i, o = _plain_string(data, i + 1, out, o + 1)
        elif tag == NS:
            i, o = _number(data, i + 1, out, o + 1)
        else:
            i, o = _binary(data, i + 1, out, o + 1)
        if i < 0:
            return -1, o
        place = base + count
        ends[place] = o
        order[place] = place
        if count and ascending:
            before = place - 1
            ascending = (
                _compare(tag, out, starts[before], ends[before], starts[place], ends[place]) < 0
            )
        count += 1
        _put(out, o, _QUOTE)
        o += 1
        i = _blank(data, i + 1)
        if _at(data, i) == _CLOSE_LIST:
            break
        if _at(data, i) != _COMMA:
            return -1, o
        _put(out, o, _COMMA)
        o += 1
        i = _blank(data, i + 1)
    if not ascending:
        _sort(tag, out, starts, ends, order, base, count)
        o = _reorder_set(tag, out, first, o, starts, ends, order, base, count)
    _put(out, o, _CLOSE_LIST)
    return i + 1, o + 1


@_compiled
def _reorder_set(tag, out, first, o, starts, ends, order, base, count):
    """Write the members in order behind themselves, then move them back."""
    end = o
    for k in range(base, base + count):
        place = order[k]
        if k > base:
            before = order[k - 1]
            if _compare(tag, out, starts[before], ends[before], starts[place], ends[place]) == 0:
                continue
            _put(out, end, _COMMA)
            end += 1
        end = _copy(out, starts[place] - 1, ends[place] + 1, out, end)
    return _copy(out, o, end, out, first)


@_compiled
def _are_ascending(out, starts, ends, order, base, count):
    for k in range(base + 1, base + count):
        a, b = order[k - 1], order[k]
        if _compare_bytes(out, starts[a], ends[a], starts[b], ends[b]) >= 0:
            return False
    return True


@_compiled
def _reorder_map(out, o, starts, ends, order, base, count, habits):
    """Sort the members of a map that ends at `o`; False for a name that is there twice.

    `starts` and `ends` are those of names, without quotes; members follow each other with a comma.
    `habits`: how the last map of as many members had to be ordered, which is often the way again.
    """
    has_habit = count < len(habits)
    for k in range(count):
        order[base + k] = base + (habits[count, k] if has_habit else k)
    if not _are_ascending(out, starts, ends, order, base, count):
        _sort(SS, out, starts, ends, order, base, count)
        if not _are_ascending(out, starts, ends, order, base, count):
            return False
        if has_habit:
            for k in range(count):
                habits[count, k] = order[base + k] - base
    moved = base
    while moved < base + count and order[moved] == moved:
        moved += 1
    if moved == base + count:
        return True
    first, last, end = starts[moved] - 1, base + count - 1, o
    for k in range(moved, base + count):
        member = order[k]
        if k > moved:
            _put(out, end, _COMMA)
            end += 1
        stop = o if member == last else starts[member + 1] - 2
        end = _copy(out, starts[member] - 1, stop, out, end)
    _copy(out, o, end, out, first)
    return True


# ------------------------------------------------------------------------------------- canonical


@_compiled
def _item(data, i, out, o, starts, ends, order, is_map, bases, habits):
    """An item from its brace to behind the closing one, canonical."""
    if _at(data, i) != _OPEN:
        return -1, o
    depth, used = 0, 0
    is_map[0], bases[0] = True, 0
    _put(out, o, _OPEN)
    o += 1
    i = _blank(data, i + 1)
    ended = _at(data, i) == _CLOSE
    while True:
        if not ended:
            # At a name or, in a list, at a value.
            if is_map[depth]:
                if _at(data, i) != _QUOTE or used >= len(starts):
                    return -1, o
                _put(out, o, _QUOTE)
                starts[used] = o + 1
                i, o = _plain_string(data, i + 1, out, o + 1)
                if i < 0:
                    return -1, o
                ends[used] = o
                used += 1
                word = _eight(data, i)
                if word == _STRING_FOLLOWS or word == _NUMBER_FOLLOWS:
                    # What most members are, as compact JSON has them.
                    _put_eight(out, o, word)
                    if word == _STRING_FOLLOWS:
                        i, o = _string(data, i + 8, out, o + 8)
                    else:
                        i, o = _number(data, i + 8, out, o + 8)
                    if i < 0:
                        return -1, o
                    word = _eight(data, i)
                    _put_eight(out, o, word)
                    if word & _THREE_BYTES == _MEMBER_FOLLOWS:
                        i = _blank(data, i + 3)
                        o += 3
                        continue
                    o += 1
                    i = _blank(data, i + 1)
                    if _at(data, i) != _CLOSE:
                        return -1, o
                    _put(out, o, _CLOSE)
                    o += 1
                    i = _blank(data, i + 1)
                    if _at(data, i) == _COMMA:
                        _put(out, o, _COMMA)
                        o += 1
                        i = _blank(data, i + 1)
                    else:
                        ended = True
                    continue
                _put(out, o, _QUOTE)
                _put(out, o + 1, _COLON)
                o += 2
                i = _blank(data, i + 1)
                if _at(data, i) != _COLON:
                    return -1, o
                i = _blank(data, i + 1)
            if _at(data, i) != _OPEN:
                return -1, o
            i = _blank(data, i + 1)
            if _at(data, i) != _QUOTE:
                return -1, o
            tag, size = _tag(data, i + 1)
            if tag < 0:
                return -1, o
            _put(out, o, _OPEN)
            _put(out, o + 1, _QUOTE)
            o = _copy(data, i + 1, i + 1 + size, out, o + 2)
            _put(out, o, _COLON)
            o += 1
            i = _blank(data, i + 1 + size)
            if _at(data, i) != _COLON:
                return -1, o
            i = _blank(data, i + 1)
            if tag <= B:
                if _at(data, i) != _QUOTE:
                    return -1, o
                _put(out, o, _QUOTE)
                if tag == S:
                    i, o = _string(data, i + 1, out, o + 1)
                elif tag == N:
                    i, o = _number(data, i + 1, out, o + 1)
                else:
                    i, o = _binary(data, i + 1, out, o + 1)
                if i < 0:
                    return -1, o
                _put(out, o, _QUOTE)
                o += 1
                i += 1
            elif tag <= NULL:
                i, o = _word(data, i, out, o, tag == NULL)
                if i < 0:
                    return -1, o
            elif tag >= SS:
                i, o = _set(data, i, tag, out, o, starts, ends, order, used)
                if i < 0:
                    return -1, o
            else:
                if _at(data, i) != (_OPEN if tag == M else _OPEN_LIST) or depth + 1 >= len(bases):
                    return -1, o
                depth += 1
                is_map[depth], bases[depth] = tag == M, used
                _put(out, o, _at(data, i))
                o += 1
                i = _blank(data, i + 1)
                ended = _at(data, i) == (_CLOSE if tag == M else _CLOSE_LIST)
                continue
            i = _blank(data, i)
            if _at(data, i) != _CLOSE:
                return -1, o
            _put(out, o, _CLOSE)
            o += 1
            i = _blank(data, i + 1)
            if _at(data, i) == _COMMA:
                _put(out, o, _COMMA)
                o += 1
                i = _blank(data, i + 1)
                continue
        # At what closes the map or list.
        ended = False
        base = bases[depth]
        if _at(data, i) != (_CLOSE if is_map[depth] else _CLOSE_LIST):
            return -1, o
        if used > base + 1 and not _reorder_map(
            out, o, starts, ends, order, base, used - base, habits
        ):
            return -1, o
        _put(out, o, _at(data, i))
        o += 1
        i += 1
        if depth == 0:
            return i, o
        depth -= 1
        used = base
        i = _blank(data, i)
        if _at(data, i) != _CLOSE:
            return -1, o
        _put(out, o, _CLOSE)
        o += 1
        i = _blank(data, i + 1)
        if _at(data, i) == _COMMA:
            _put(out, o, _COMMA)
            o += 1
            i = _blank(data, i + 1)
        else:
            ended = True


@_compiled
def _line(data, i, out, o, starts, ends, order, is_map, bases, habits):
    """`{"Item":{...}}` and its newline; returns the place behind it."""
    i = _blank(data, i)
    if _at(data, i) != _OPEN:
        return -1, o
    i = _blank(data, i + 1)
    # "Item"
    if not (
        _at(data, i) == _QUOTE
        and _at(data, i + 1) == 73
        and _at(data, i + 2) == 116
        and _at(data, i + 3) == 101
        and _at(data, i + 4) == 109
        and _at(data, i + 5) == _QUOTE
    ):
        return -1, o
    i = _blank(data, i + 6)
    if _at(data, i) != _COLON:
        return -1, o
    i, o = _item(data, _blank(data, i + 1), out, o, starts, ends, order, is_map, bases, habits)
    if i < 0:
        return -1, o
    i = _blank(data, i)
    if _at(data, i) != _CLOSE:
        return -1, o
    i = _blank(data, i + 1)
    return (i + 1 if _at(data, i) == _NEWLINE else -1), o


@_compiled
def canonical_lines(data, size, out, item_ends, line_ends, understood):
    """Lines of a full export as canonical items, one behind the other in `out`.

    `data[:size]` ends with a newline and has 8 spare bytes behind it; `out` has twice its size and
    8 more. A line that is not understood has an empty item and False in `understood`. Returns the
    number of lines, -1 if they are more than fit.
    """
    starts = np.empty(MAX_MEMBERS, np.int64)
    ends = np.empty(MAX_MEMBERS, np.int64)
    order = np.empty(MAX_MEMBERS, np.int64)
    bases = np.empty(MAX_DEPTH, np.int64)
    is_map = np.empty(MAX_DEPTH, np.bool_)
    habits = np.empty((_HABITS, _HABITS), np.int64)
    habits[:, :] = np.arange(_HABITS)
    i, o, count = 0, 0, 0
    while i < size:
        if count >= len(item_ends):
            return -1
        after, end = _line(data, i, out, o, starts, ends, order, is_map, bases, habits)
        understood[count] = after >= 0
        if after < 0:
            after, end = i, o
            while _at(data, after) != _NEWLINE:
                after += 1
            after += 1
        i, o = after, end
        item_ends[count] = o
        line_ends[count] = i
        count += 1
    return count


# ------------------------------------------------------------------------------------- scan


@_compiled
def _skip_string(data, i, end):
    """To the closing quote of canonical text."""
    while i < end:
        quotes = _quotes(_eight(data, i))
        if quotes == 0:
            i += 8
            continue
        i += _first_byte(quotes)
        if _at(data, i) == _QUOTE:
            return i if i < end else -1
        i += 2
    return -1


@_compiled
def _skip_nested(data, i, end):
    """From an opening bracket or brace to behind what closes it."""
    depth = 0
    while i < end:
        c = _at(data, i)
        if c == _QUOTE:
            i = _skip_string(data, i + 1, end)
            if i < 0:
                return -1
        elif c == _OPEN or c == _OPEN_LIST:
            depth += 1
        elif c == _CLOSE or c == _CLOSE_LIST:
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return -1


@_compiled
def _hash(data, i, end):
    code = np.int64(5381)
    for k in range(i, end):
        code = (code * 33 + _at(data, k)) & 0x7FFFFFFF
    return code


@_compiled
def _same(data, i, other, at, size):
    k = 0
    while k + 8 <= size:
        if _eight(data, i + k) != _eight(other, at + k):
            return False
        k += 8
    while k < size:
        if _at(data, i + k) != _at(other, at + k):
            return False
        k += 1
    return True


@_compiled
def _is_name(data, i, size, text, text_ends, attribute):
    start = text_ends[attribute]
    if text_ends[attribute + 1] - start != size:
        return False
    return _same(data, i, text, start, size)


@_compiled
def _attribute(data, i, end, slots, text, text_ends, known):
    """The number of the attribute whose name is `_at(data, i:end)`; a new one if there is room."""
    slot = _hash(data, i, end) % len(slots)
    while slots[slot] >= 0:
        if _is_name(data, i, end - i, text, text_ends, slots[slot]):
            return slots[slot]
        slot = (slot + 1) % len(slots)
    count, used = known[0], text_ends[known[0]]
    if count + 1 >= len(text_ends) or used + end - i > len(text) - 8:
        return -1
    for k in range(end - i):
        text[used + k] = _at(data, i + k)
    text_ends[count + 1] = used + end - i
    slots[slot] = count
    known[0] = count + 1
    return count


@_compiled
def number_of(name, size, slots, text, text_ends, known):
    """The number of an attribute name, as `_attribute` gives it."""
    return _attribute(name, 0, size, slots, text, text_ends, known)


@_compiled
def scan(data, offsets, slots, text, text_ends, follow, known, row, attribute, tag, name, at, stop):
    """Every top-level value of canonical items: its row, attribute, tag and place.

    `name`: where its name's opening quote is; `at`: where the content begins, behind the quote of
    strings; `stop`: behind the brace that closes the value. Names are learnt in `slots`, `text`,
    `text_ends`, `known`; `follow`: which attribute followed each one last time. Returns the number
    of values.
    """
    count = 0
    for r in range(len(offsets) - 1):
        i, end = np.int64(offsets[r]), np.int64(offsets[r + 1])
        if end - i < 2 or _at(data, i) != _OPEN or _at(data, end - 1) != _CLOSE:
            return -1
        i += 1
        before = 0
        more = i < end - 1
        while more:
            # The shortest rest: a quote, the name, `":{"L":[]}}`.
            if i + 11 > end or _at(data, i) != _QUOTE or count >= len(row):
                return -1
            start = i
            guess = follow[before]
            size = text_ends[guess + 1] - text_ends[guess] if guess >= 0 else 0
            if (
                guess >= 0
                and i + 1 + size < end
                and _at(data, i + 1 + size) == _QUOTE
                and _is_name(data, i + 1, size, text, text_ends, guess)
            ):
                which = guess
                i += 1 + size
            else:
                i = _skip_string(data, i + 1, end)
                if i < 0:
                    return -1
                which = _attribute(data, start + 1, i, slots, text, text_ends, known)
                if which < 0:
                    return -1
                follow[before] = which
            before = which + 1
            if i + 10 > end or _at(data, i + 1) != _COLON or _at(data, i + 2) != _OPEN:
                return -1
            kind, size = _tag(data, i + 4)
            if kind < 0 or _at(data, i + 3) != _QUOTE or _at(data, i + 4 + size) != _COLON:
                return -1
            i += 4 + size + 1
            row[count], attribute[count], tag[count], name[count] = r, which, kind, start
            if kind <= B:
                if _at(data, i) != _QUOTE:
                    return -1
                i += 1
                at[count] = i
                i = _skip_string(data, i, end)
                if i < 0:
                    return -1
                i += 1
            elif kind <= NULL:
                at[count] = i
                while i < end and _at(data, i) != _CLOSE:
                    i += 1
            else:
                at[count] = i
                i = _skip_nested(data, i, end)
                if i < 0:
                    return -1
            if i + 1 >= end or _at(data, i) != _CLOSE:
                return -1
            i += 1
            stop[count] = i
            count += 1
            more = _at(data, i) == _COMMA
            if more:
                i += 1
            elif i != end - 1:
                return -1
    return count


@_compiled
def _measure(data, i, end, attribute, integer_digits, scales):
    """The width of one canonical number, as `core.columns.AttributeStats` has it."""
    if _at(data, i) == _MINUS:
        i += 1
    elif end - i == 1 and _at(data, i) == _ZERO:
        integer_digits[attribute] = max(integer_digits[attribute], 1)
        return True
    digits, fraction, dot = 0, 0, False
    while i < end and (_is_digit(_at(data, i)) or _at(data, i) == _DOT):
        if _at(data, i) == _DOT:
            dot = True
        else:
            fraction += dot
            digits += digits > 0 or _at(data, i) != _ZERO
        i += 1
    exponent = -fraction
    if i < end:
        if _at(data, i) != 69 or i + 2 >= end:  # E+100, E-130
            return False
        power = 0
        for k in range(i + 2, end):
            if not _is_digit(_at(data, k)) or power > 999:
                return False
            power = power * 10 + (_at(data, k) - _ZERO)
        exponent += -power if _at(data, i + 1) == _MINUS else power
    integer_digits[attribute] = max(integer_digits[attribute], digits + exponent)
    scales[attribute] = max(scales[attribute], -exponent)
    return True


@_compiled
def measure(data, attribute, tag, at, stop, counts, integer_digits, scales):
    """Add scanned values to the statistics of their attributes; False for an odd number."""
    for k in range(len(attribute)):
        counts[attribute[k], tag[k]] += 1
        if tag[k] == N:
            if not _measure(data, at[k], stop[k] - 2, attribute[k], integer_digits, scales):
                return False
        elif tag[k] == NS:
            i = at[k] + 1
            while _at(data, i) == _QUOTE:
                end = _skip_string(data, i + 1, stop[k])
                if end < 0 or not _measure(data, i + 1, end, attribute[k], integer_digits, scales):
                    return False
                i = end + 2
    return True


# ------------------------------------------------------------------------------------- columns


@_compiled
def select_keys(data, row, attribute, name, stop, keys, out, ends):
    """Canonical keys: the members of each item that are `keys`, attributes in order of name.

    Returns False if one is missing from an item.
    """
    o, k = 0, 0
    for r in range(len(ends)):
        _put(out, o, _OPEN)
        o += 1
        found = 0
        while k < len(row) and row[k] == r:
            if found < len(keys) and attribute[k] == keys[found]:
                if found:
                    _put(out, o, _COMMA)
                    o += 1
                o = _copy(data, name[k], stop[k], out, o)
                found += 1
            k += 1
        if found != len(keys):
            return False
        _put(out, o, _CLOSE)
        o += 1
        ends[r] = o
    return True


@_compiled
def place(data, row, attribute, tag, name, at, stop, expected, starts, ends, rescued, rescued_ends):
    """Where the cells of each column are, and what does not belong to its column.

    `starts[column, row]` is -1 for a cell without value. A rescued value goes to `rescued`, whose
    rows end at `rescued_ends`.
    """
    starts[:, :] = -1
    o, k = 0, 0
    for r in range(len(rescued_ends)):
        first = o
        while k < len(row) and row[k] == r:
            column = attribute[k]
            if column >= len(expected):
                return False
            if tag[k] == expected[column]:
                starts[column, r] = at[k]
                ends[column, r] = stop[k] - (2 if tag[k] <= B else 1)
            elif tag[k] != NULL:
                _put(rescued, o, _COMMA if o > first else _OPEN)
                o += 1
                o = _copy(data, name[k], stop[k], rescued, o)
            k += 1
        if o > first:
            _put(rescued, o, _CLOSE)
            o += 1
        rescued_ends[r] = o
    return True


@_compiled
def split_sets(data, starts, ends, offsets, member_starts, member_ends):
    """Sets as lists: where each one ends among the members, and where the members are.

    Returns the number of members.
    """
    count = 0
    for r in range(len(starts)):
        if starts[r] >= 0:
            i = starts[r] + 1
            while _at(data, i) == _QUOTE:
                end = _skip_string(data, i + 1, ends[r])
                if end < 0:
                    return -1
                member_starts[count] = i + 1
                member_ends[count] = end
                count += 1
                i = end + 2
        offsets[r + 1] = count
    return count


@_compiled
def integers(data, starts, ends, values):
    """Canonical integers of up to 18 digits."""
    for r in range(len(starts)):
        value = 0
        if starts[r] >= 0:
            i = np.int64(starts[r])
            negative = _at(data, i) == _MINUS
            if negative:
                i += 1
            if ends[r] - i > 18 or i >= ends[r]:
                return False
            while i < ends[r]:
                if not _is_digit(_at(data, i)):
                    return False
                value = value * 10 + (_at(data, i) - _ZERO)
                i += 1
            if negative:
                value = -value
        values[r] = value
    return True


@_compiled
def decimals(data, starts, ends, precision, scale, halves):
    """Canonical numbers without exponent at one scale, as pairs of the halves of 128 bits."""
    limbs = np.zeros(4, np.int64)
    for r in range(len(starts)):
        halves[2 * r] = halves[2 * r + 1] = 0
        if starts[r] < 0:
            continue
        i = np.int64(starts[r])
        negative = _at(data, i) == _MINUS
        if negative:
            i += 1
        limbs[:] = 0
        value, digits, fraction, dot = 0, 0, 0, False
        while i < ends[r] or fraction < scale:
            digit = 0
            if i < ends[r]:
                if _at(data, i) == _DOT and not dot:
                    dot = True
                    i += 1
                    continue
                if not _is_digit(_at(data, i)):
                    return False
                digit = _at(data, i) - _ZERO
                i += 1
            else:
                dot = True
            fraction += dot
            digits += digits > 0 or digit > 0
            if digits > precision or fraction > scale:
                return False
            if digits <= 18:
                value = value * 10 + digit
                continue
            if digits == 19:
                limbs[0] = value & 0xFFFFFFFF
                limbs[1] = value >> 32
            carry = np.int64(digit)
            for k in range(4):
                carry += limbs[k] * 10
                limbs[k] = carry & 0xFFFFFFFF
                carry >>= 32
        if digits <= 18:
            value = -value if negative else value
            halves[2 * r] = value
            halves[2 * r + 1] = -1 if value < 0 else 0
            continue
        if negative:
            carry = np.int64(1)
            for k in range(4):
                carry += limbs[k] ^ 0xFFFFFFFF
                limbs[k] = carry & 0xFFFFFFFF
                carry >>= 32
        halves[2 * r] = limbs[0] | (limbs[1] << 32)
        halves[2 * r + 1] = limbs[2] | (limbs[3] << 32)
    return True


@_compiled
def booleans(data, starts, values):
    """`true` or something else."""
    for r in range(len(starts)):
        values[r] = starts[r] >= 0 and _at(data, starts[r]) == 116


@_compiled
def strings(data, starts, ends, offsets, out):
    """Strings without their escapes."""
    o = 0
    for r in range(len(starts)):
        if starts[r] >= 0:
            o = _unescape(data, np.int64(starts[r]), np.int64(ends[r]), out, o)
            if o < 0:
                return False
        offsets[r + 1] = o
    return True


@_compiled
def _unescape(data, i, end, out, o):
    while i < end:
        word = _eight(data, i)
        _put_eight(out, o, word)
        quotes = _quotes(word)
        plain = 8 if quotes == 0 else _first_byte(quotes)
        plain = min(plain, end - i)
        i += plain
        o += plain
        if plain == 8 or i == end:
            continue
        escape = _at(data, i + 1)
        if _at(_SHORT, escape) != _NONE:
            _put(out, o, _at(_SHORT, escape))
            i += 2
        else:
            code = _four_hex(data, i + 2)
            if escape != 117 or code < 0 or code >= 0x20:  # nothing else is escaped canonically
                return -1
            _put(out, o, code)
            i += 6
        o += 1
    return o if i == end else -1


@_compiled
def binaries(data, starts, ends, offsets, out):
    """The bytes that canonical base64 stands for."""
    o = 0
    for r in range(len(starts)):
        if starts[r] >= 0:
            if (ends[r] - starts[r]) % 4:
                return False
            for i in range(starts[r], ends[r], 4):
                word, digits = 0, 0
                for k in range(4):
                    digit = _at(_SIX_BITS, _at(data, i + k))
                    digits += digit != _NONE
                    word = (word << 6) | (digit & 63)
                if digits < 4 and (digits < 2 or i + 4 != ends[r]):
                    return False
                _put(out, o, word >> 16)
                _put(out, o + 1, word >> 8)
                _put(out, o + 2, word)
                o += digits - 1
        offsets[r + 1] = o
    return True


@_compiled
def _plain(data, i, end, out, o, is_map):
    """The plain JSON of a canonical map or list at `i`; returns its end in `out`."""
    depth = 0
    is_map[0] = _at(data, i) == _OPEN
    _put(out, o, _at(data, i))
    o += 1
    i += 1
    ended = _at(data, i) == (_CLOSE if is_map[0] else _CLOSE_LIST)
    while True:
        if not ended:
            if is_map[depth]:
                stop = _skip_string(data, i + 1, end)
                if stop < 0 or stop + 2 >= end:
                    return -1
                o = _copy(data, i, stop + 2, out, o)
                i = stop + 2
            # A value: {"T":...
            if i + 7 >= end:
                return -1
            tag, size = _tag(data, i + 2)
            if tag < 0:
                return -1
            i += 2 + size + 1
            if tag <= B:
                stop = _skip_string(data, i + 1, end)
                if stop < 0:
                    return -1
                quote = 0 if tag == N else 1
                o = _copy(data, i + 1 - quote, stop + quote, out, o)
                i = stop + 1
            elif tag == NULL:
                o = _copy(_NULL_WORD, 0, 4, out, o)
                i += 4
            elif tag == BOOL:
                while i < end and _at(data, i) != _CLOSE:
                    _put(out, o, _at(data, i))
                    o += 1
                    i += 1
            elif tag >= SS:
                stop = _skip_nested(data, i, end)
                if stop < 0:
                    return -1
                if tag == NS:
                    for k in range(i, stop):
                        if _at(data, k) != _QUOTE:
                            _put(out, o, _at(data, k))
                            o += 1
                else:
                    o = _copy(data, i, stop, out, o)
                i = stop
            else:
                if depth + 1 >= len(is_map):
                    return -1
                depth += 1
                is_map[depth] = tag == M
                _put(out, o, _at(data, i))
                o += 1
                i += 1
                if i >= end:
                    return -1
                ended = _at(data, i) == (_CLOSE if tag == M else _CLOSE_LIST)
                continue
            i += 1  # the brace that closes the value
            if i >= end:
                return -1
            if _at(data, i) == _COMMA:
                _put(out, o, _COMMA)
                o += 1
                i += 1
                continue
        ended = False
        if _at(data, i) != (_CLOSE if is_map[depth] else _CLOSE_LIST):
            return -1
        _put(out, o, _at(data, i))
        o += 1
        i += 1
        if depth == 0:
            return o if i == end else -1
        depth -= 1
        i += 1
        if i >= end:
            return -1
        if _at(data, i) == _COMMA:
            _put(out, o, _COMMA)
            o += 1
            i += 1
        else:
            ended = True


@_compiled
def plain_json(data, starts, ends, offsets, out):
    """Canonical maps and lists as plain JSON."""
    is_map = np.empty(MAX_DEPTH, np.bool_)
    o = 0
    for r in range(len(starts)):
        if starts[r] >= 0:
            o = _plain(data, np.int64(starts[r]), np.int64(ends[r]), out, o, is_map)
            if o < 0:
                return False
        offsets[r + 1] = o
    return True
