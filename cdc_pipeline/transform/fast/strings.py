"""JSON strings: conversion to the canonical spelling, and back to text."""

import numpy as np

from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import (
    NONE,
    byte_at,
    byte_table,
    eight_at,
    first_byte,
    put_byte,
    put_eight,
)
from cdc_pipeline.transform.fast.tokens import BACKSLASH, QUOTE, quote_bits, special_bits

_ZERO, _SLASH, _U = 48, 47, 117
_HEX = byte_table({ord(digit): int(digit, 16) for digit in "0123456789abcdefABCDEF"})
_SHORT_ESCAPES = dict(zip('bfnrt"\\', '\b\f\n\r\t"\\', strict=True))
_SHORT = byte_table({ord(letter): ord(meant) for letter, meant in _SHORT_ESCAPES.items()})
_SHORT_OF = byte_table({ord(meant): ord(letter) for letter, meant in _SHORT_ESCAPES.items()})
_LOWER_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


@compiled
def _read_hex(data, i):
    """Parse four hexadecimal digits; -1: not digits."""
    code = 0
    for k in range(4):
        digit = byte_at(_HEX, byte_at(data, i + k))
        if digit == NONE:
            return -1
        code = code * 16 + digit
    return code


@compiled
def _put_character(code, out, o):
    """Write the UTF-8 of a code point."""
    if code < 0x80:
        put_byte(out, o, code)
        return o + 1
    if code < 0x800:
        put_byte(out, o, 0xC0 | (code >> 6))
        put_byte(out, o + 1, 0x80 | (code & 63))
        return o + 2
    if code < 0x10000:
        put_byte(out, o, 0xE0 | (code >> 12))
        put_byte(out, o + 1, 0x80 | ((code >> 6) & 63))
        put_byte(out, o + 2, 0x80 | (code & 63))
        return o + 3
    put_byte(out, o, 0xF0 | (code >> 18))
    put_byte(out, o + 1, 0x80 | ((code >> 12) & 63))
    put_byte(out, o + 2, 0x80 | ((code >> 6) & 63))
    put_byte(out, o + 3, 0x80 | (code & 63))
    return o + 4


@compiled
def _copy_unicode_escape(data, i, out, o):
    r"""Write the canonical spelling of `\uXXXX` (or a pair of them) at `i`."""
    code = _read_hex(data, i + 2)
    i += 6
    if 0xD800 <= code < 0xDC00:
        if byte_at(data, i) != BACKSLASH or byte_at(data, i + 1) != _U:
            return -1, o
        low = _read_hex(data, i + 2)
        if low < 0xDC00 or low > 0xDFFF:
            return -1, o
        i += 6
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
    elif code < 0 or 0xDC00 <= code < 0xE000:
        return -1, o
    if code < 0x20 or code == QUOTE or code == BACKSLASH:
        put_byte(out, o, BACKSLASH)
        if byte_at(_SHORT_OF, code) != NONE:
            put_byte(out, o + 1, byte_at(_SHORT_OF, code))
            return i, o + 2
        put_byte(out, o + 1, _U)
        put_byte(out, o + 2, _ZERO)
        put_byte(out, o + 3, _ZERO)
        put_byte(out, o + 4, byte_at(_LOWER_HEX, code >> 4))
        put_byte(out, o + 5, byte_at(_LOWER_HEX, code & 15))
        return i, o + 6
    return i, _put_character(code, out, o)


@compiled
def _copy_unescaped(data, i, out, o):
    """Copy up to the next quote, backslash or control character (and up to 7 bytes more)."""
    special = special_bits(eight_at(data, i))
    while special == 0:
        put_eight(out, o, eight_at(data, i))
        i += 8
        o += 8
        special = special_bits(eight_at(data, i))
    put_eight(out, o, eight_at(data, i))
    plain = first_byte(special)
    return i + plain, o + plain


@compiled
def copy_string(data, i, out, o):
    """Write a string canonically, from after its opening quote to its closing one."""
    i, o = _copy_unescaped(data, i, out, o)
    while byte_at(data, i) == BACKSLASH:
        c = byte_at(data, i + 1)
        if byte_at(_SHORT, c) != NONE:
            put_byte(out, o, BACKSLASH)
            put_byte(out, o + 1, c)
            o += 2
            i += 2
        elif c == _SLASH:
            put_byte(out, o, _SLASH)
            o += 1
            i += 2
        elif c == _U:
            i, o = _copy_unicode_escape(data, i, out, o)
            if i < 0:
                return -1, o
        else:
            return -1, o
        i, o = _copy_unescaped(data, i, out, o)
    return (i if byte_at(data, i) == QUOTE else -1), o


@compiled
def copy_plain_string(data, i, out, o):
    """Copy a string without escapes, whose bytes sort like its characters."""
    i, o = _copy_unescaped(data, i, out, o)
    return (i if byte_at(data, i) == QUOTE else -1), o


@compiled
def unescape(data, i, end, out, o):
    """Write the text of a canonical string; returns its end in `out`."""
    while i < end:
        word = eight_at(data, i)
        put_eight(out, o, word)
        quotes = quote_bits(word)
        plain = 8 if quotes == 0 else first_byte(quotes)
        plain = min(plain, end - i)
        i += plain
        o += plain
        if plain == 8 or i == end:
            continue
        escape = byte_at(data, i + 1)
        if byte_at(_SHORT, escape) != NONE:
            put_byte(out, o, byte_at(_SHORT, escape))
            i += 2
        else:
            code = _read_hex(data, i + 2)
            if escape != _U or code < 0 or code >= 0x20:  # canonical JSON escapes nothing else
                return -1
            put_byte(out, o, code)
            i += 6
        o += 1
    return o if i == end else -1
