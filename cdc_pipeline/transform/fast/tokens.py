"""Tokens of canonical typed JSON: characters, type tags, and functions that skip values."""

import numpy as np

from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import as_word, byte_at, copy_bytes, eight_at, first_byte

S, N, B, BOOL, NULL, M, L, SS, NS, BS = range(10)
TAGS = ("S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS")
"""DynamoDB's types: strings in JSON up to B, words up to NULL, maps and lists, then sets."""

MAX_DEPTH = 64  # twice what DynamoDB allows

QUOTE, BACKSLASH, COMMA, COLON, NEWLINE = 34, 92, 44, 58, 10
OPEN, CLOSE, OPEN_LIST, CLOSE_LIST = 123, 125, 91, 93

_BOOL_TAG, _NULL_TAG = as_word(b'BOOL"'), as_word(b'NULL"')
_TRUE, _FALSE = as_word(b"true"), as_word(b"false")
_FOUR_BYTES, _FIVE_BYTES = as_word(b"\xff" * 4), as_word(b"\xff" * 5)
_ONES = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_QUOTES = np.uint64(0x2222222222222222)
_BACKSLASHES = np.uint64(0x5C5C5C5C5C5C5C5C)
_BLANKS = np.uint64(0x2020202020202020)


@compiled
def quote_bits(word):
    """Return the high bits of quote and backslash bytes; exact up to the first of them."""
    quote, backslash = word ^ _QUOTES, word ^ _BACKSLASHES
    return (((quote - _ONES) & ~quote) | ((backslash - _ONES) & ~backslash)) & _HIGH


@compiled
def special_bits(word):
    """Return `quote_bits`, including control characters."""
    return quote_bits(word) | ((word - _BLANKS) & ~word & _HIGH)


@compiled
def skip_blanks(data, i):
    """Skip blanks; a newline is not a blank here, because it ends the line."""
    while byte_at(data, i) == 32 or byte_at(data, i) == 9 or byte_at(data, i) == 13:
        i += 1
    return i


@compiled
def read_tag(data, i):
    """Read the type tag at `i`, and its length with its closing quote."""
    a, b = byte_at(data, i), byte_at(data, i + 1)
    if b == QUOTE:
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
    if b == 83 and byte_at(data, i + 2) == QUOTE:
        if a == 83:
            return SS, 3
        if a == 78:
            return NS, 3
        if a == 66:
            return BS, 3
        return -1, 0
    word = eight_at(data, i) & _FIVE_BYTES
    if word == _BOOL_TAG:
        return BOOL, 5
    if word == _NULL_TAG:
        return NULL, 5
    return -1, 0


@compiled
def copy_word(data, i, out, o, null):
    """Copy `true` or, unless `null`, `false`."""
    word = eight_at(data, i)
    if word & _FOUR_BYTES == _TRUE:
        size = 4
    elif not null and word & _FIVE_BYTES == _FALSE:
        size = 5
    else:
        return -1, o
    return i + size, copy_bytes(data, i, i + size, out, o)


@compiled
def skip_string(data, i, end):
    """Skip to the closing quote of canonical text."""
    while i < end:
        quotes = quote_bits(eight_at(data, i))
        if quotes == 0:
            i += 8
            continue
        i += first_byte(quotes)
        if byte_at(data, i) == QUOTE:
            return i if i < end else -1
        i += 2
    return -1


@compiled
def skip_nested(data, i, end):
    """Skip from an opening bracket or brace to after its closing one."""
    depth = 0
    while i < end:
        c = byte_at(data, i)
        if c == QUOTE:
            i = skip_string(data, i + 1, end)
            if i < 0:
                return -1
        elif c == OPEN or c == OPEN_LIST:
            depth += 1
        elif c == CLOSE or c == CLOSE_LIST:
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return -1
