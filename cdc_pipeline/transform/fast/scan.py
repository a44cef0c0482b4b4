"""Positions of the top-level values of canonical items, and statistics of their attributes."""

import numpy as np

from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import byte_at, copy_bytes, eight_at, put_byte
from cdc_pipeline.transform.fast.numbers import measure_number
from cdc_pipeline.transform.fast.tokens import (
    CLOSE,
    COLON,
    COMMA,
    NS,
    NULL,
    OPEN,
    QUOTE,
    B,
    N,
    read_tag,
    skip_nested,
    skip_string,
)


@compiled
def _hash(data, i, end):
    code = np.int64(5381)
    for k in range(i, end):
        code = (code * 33 + byte_at(data, k)) & 0x7FFFFFFF
    return code


@compiled
def _same(data, i, other, at, size):
    k = 0
    while k + 8 <= size:
        if eight_at(data, i + k) != eight_at(other, at + k):
            return False
        k += 8
    while k < size:
        if byte_at(data, i + k) != byte_at(other, at + k):
            return False
        k += 1
    return True


@compiled
def _is_name(data, i, size, text, text_ends, attribute):
    start = text_ends[attribute]
    if text_ends[attribute + 1] - start != size:
        return False
    return _same(data, i, text, start, size)


@compiled
def _attribute(data, i, end, slots, text, text_ends, known):
    """Return the number of the attribute with the name `data[i:end]`; a new one if it fits."""
    slot = _hash(data, i, end) % len(slots)
    while slots[slot] >= 0:
        if _is_name(data, i, end - i, text, text_ends, slots[slot]):
            return slots[slot]
        slot = (slot + 1) % len(slots)
    count, used = known[0], text_ends[known[0]]
    if count + 1 >= len(text_ends) or used + end - i > len(text) - 8:
        return -1
    for k in range(end - i):
        text[used + k] = byte_at(data, i + k)
    text_ends[count + 1] = used + end - i
    slots[slot] = count
    known[0] = count + 1
    return count


@compiled
def number_of(name, size, slots, text, text_ends, known):
    """Return the number of an attribute name, as in `_attribute`."""
    return _attribute(name, 0, size, slots, text, text_ends, known)


@compiled
def _skip_content(data, i, end, tag):
    """Skip from a value's content, after the quote of strings, to its closing brace."""
    if tag > NULL:
        return skip_nested(data, i, end)
    if tag <= B:
        i = skip_string(data, i, end)
        return i + 1 if i >= 0 else -1
    while i < end and byte_at(data, i) != CLOSE:
        i += 1
    return i


@compiled
def scan(data, offsets, slots, text, text_ends, follow, known, row, attribute, tag, name, at, stop):
    """Find every top-level value of canonical items: row, attribute, tag and position.

    `name`: the opening quote of its name; `at`: the beginning of the content, after the quote of
    strings; `stop`: after the value's closing brace. New names are added to `slots`, `text`,
    `text_ends`, `known`; `follow`: the attribute that followed each one last. Returns the number
    of values.
    """
    count = 0
    for r in range(len(offsets) - 1):
        i, end = np.int64(offsets[r]), np.int64(offsets[r + 1])
        if end - i < 2 or byte_at(data, i) != OPEN or byte_at(data, end - 1) != CLOSE:
            return -1
        i += 1
        before = 0
        more = i < end - 1
        while more:
            # The shortest rest: a quote, the name, `":{"L":[]}}`.
            if i + 11 > end or byte_at(data, i) != QUOTE or count >= len(row):
                return -1
            start = i
            guess = follow[before]
            size = text_ends[guess + 1] - text_ends[guess] if guess >= 0 else 0
            if (
                guess >= 0
                and i + 1 + size < end
                and byte_at(data, i + 1 + size) == QUOTE
                and _is_name(data, i + 1, size, text, text_ends, guess)
            ):
                which = guess
                i += 1 + size
            else:
                i = skip_string(data, i + 1, end)
                if i < 0:
                    return -1
                which = _attribute(data, start + 1, i, slots, text, text_ends, known)
                if which < 0:
                    return -1
                follow[before] = which
            before = which + 1
            if i + 10 > end or byte_at(data, i + 1) != COLON or byte_at(data, i + 2) != OPEN:
                return -1
            kind, size = read_tag(data, i + 4)
            if kind < 0 or byte_at(data, i + 3) != QUOTE or byte_at(data, i + 4 + size) != COLON:
                return -1
            i += 4 + size + 1
            row[count], attribute[count], tag[count], name[count] = r, which, kind, start
            if kind <= B:
                if byte_at(data, i) != QUOTE:
                    return -1
                i += 1
            at[count] = i
            i = _skip_content(data, i, end, kind)
            if i < 0 or i + 1 >= end or byte_at(data, i) != CLOSE:
                return -1
            i += 1
            stop[count] = i
            count += 1
            more = byte_at(data, i) == COMMA
            if more:
                i += 1
            elif i != end - 1:
                return -1
    return count


@compiled
def measure(data, attribute, tag, at, stop, counts, integer_digits, scales):
    """Add scanned values to the statistics of their attributes; False: an unsupported number."""
    for k in range(len(attribute)):
        counts[attribute[k], tag[k]] += 1
        if tag[k] == N:
            if not measure_number(data, at[k], stop[k] - 2, attribute[k], integer_digits, scales):
                return False
        elif tag[k] == NS:
            i = at[k] + 1
            while byte_at(data, i) == QUOTE:
                end = skip_string(data, i + 1, stop[k])
                if end < 0 or not measure_number(
                    data, i + 1, end, attribute[k], integer_digits, scales
                ):
                    return False
                i = end + 2
    return True


@compiled
def select_keys(data, row, attribute, name, stop, keys, out, ends):
    """Write canonical keys: the members `keys` of each item, attributes in order of name.

    Returns False if an item lacks one.
    """
    o, k = 0, 0
    for r in range(len(ends)):
        put_byte(out, o, OPEN)
        o += 1
        found = 0
        while k < len(row) and row[k] == r:
            if found < len(keys) and attribute[k] == keys[found]:
                if found:
                    put_byte(out, o, COMMA)
                    o += 1
                o = copy_bytes(data, name[k], stop[k], out, o)
                found += 1
            k += 1
        if found != len(keys):
            return False
        put_byte(out, o, CLOSE)
        o += 1
        ends[r] = o
    return True


@compiled
def find_cells(
    data, row, attribute, tag, name, at, stop, expected, starts, ends, rescued, rescued_ends
):
    """Find the cells of each column, and the values that do not fit their columns.

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
                put_byte(rescued, o, COMMA if o > first else OPEN)
                o += 1
                o = copy_bytes(data, name[k], stop[k], rescued, o)
            k += 1
        if o > first:
            put_byte(rescued, o, CLOSE)
            o += 1
        rescued_ends[r] = o
    return True
