"""Conversion of full exports' lines to canonical items.

Input is whole lines, each with its newline. No loop of this package passes over a newline, so every
loop ends, for any bytes. Supported lines are spelled as in `core.items.attributes`.
"""

import numpy as np

from cdc_pipeline.transform.fast.binary import copy_base64
from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import (
    as_word,
    byte_at,
    copy_bytes,
    eight_at,
    put_byte,
    put_eight,
)
from cdc_pipeline.transform.fast.numbers import copy_number
from cdc_pipeline.transform.fast.order import (
    compare_members,
    sort_members,
    write_map_in_order,
    write_set_in_order,
)
from cdc_pipeline.transform.fast.strings import copy_plain_string, copy_string
from cdc_pipeline.transform.fast.tokens import (
    CLOSE,
    CLOSE_LIST,
    COLON,
    COMMA,
    MAX_DEPTH,
    NEWLINE,
    NS,
    NULL,
    OPEN,
    OPEN_LIST,
    QUOTE,
    SS,
    B,
    M,
    N,
    S,
    copy_word,
    read_tag,
    skip_blanks,
)

MAX_MEMBERS = 1 << 16
HABITS = 128
_STRING_FOLLOWS, _NUMBER_FOLLOWS = as_word(b'":{"S":"'), as_word(b'":{"N":"')
_MEMBER_FOLLOWS, _THREE_BYTES = as_word(b'"},'), as_word(b"\xff\xff\xff")
_ITEM, _SIX_BYTES = as_word(b'"Item"'), as_word(b"\xff" * 6)


@compiled
def canonical_lines(data, size, out, item_ends, line_ends, understood):
    """Write the lines of a full export as canonical items, one after the other, to `out`.

    `data[:size]` ends with a newline, followed by 8 spare bytes; `out` has twice its size and 8
    more. An unsupported line has an empty item and False in `understood`. Returns the number of
    lines, -1 if they do not fit.
    """
    starts = np.empty(MAX_MEMBERS, np.int64)
    ends = np.empty(MAX_MEMBERS, np.int64)
    order = np.empty(MAX_MEMBERS, np.int64)
    bases = np.empty(MAX_DEPTH, np.int64)
    is_map = np.empty(MAX_DEPTH, np.bool_)
    habits = np.empty((HABITS, HABITS), np.int64)
    habits[:, :] = np.arange(HABITS)
    i, o, count = 0, 0, 0
    while i < size:
        if count >= len(item_ends):
            return -1
        after, end = _copy_line(data, i, out, o, starts, ends, order, is_map, bases, habits)
        understood[count] = after >= 0
        if after < 0:
            after, end = i, o
            while byte_at(data, after) != NEWLINE:
                after += 1
            after += 1
        i, o = after, end
        item_ends[count] = o
        line_ends[count] = i
        count += 1
    return count


@compiled
def _copy_line(data, i, out, o, starts, ends, order, is_map, bases, habits):
    """Convert `{"Item":{...}}` and its newline; returns the position after it."""
    i = skip_blanks(data, i)
    if byte_at(data, i) != OPEN:
        return -1, o
    i = skip_blanks(data, i + 1)
    if eight_at(data, i) & _SIX_BYTES != _ITEM:
        return -1, o
    i = skip_blanks(data, i + 6)
    if byte_at(data, i) != COLON:
        return -1, o
    i, o = copy_item(
        data, skip_blanks(data, i + 1), out, o, starts, ends, order, is_map, bases, habits
    )
    if i < 0:
        return -1, o
    i = skip_blanks(data, i)
    if byte_at(data, i) != CLOSE:
        return -1, o
    i = skip_blanks(data, i + 1)
    return (i + 1 if byte_at(data, i) == NEWLINE else -1), o


@compiled
def copy_item(data, i, out, o, starts, ends, order, is_map, bases, habits):
    """Write a canonical item, from its brace to after its closing brace and blanks."""
    if byte_at(data, i) != OPEN:
        return -1, o
    depth, used = 0, 0
    is_map[0], bases[0] = True, 0
    i, o = _step(data, i, out, o)
    ended = byte_at(data, i) == CLOSE
    while True:
        if ended:
            # At the end of the map or list.
            base = bases[depth]
            if byte_at(data, i) != (CLOSE if is_map[depth] else CLOSE_LIST):
                return -1, o
            if used > base + 1 and not write_map_in_order(
                out, o, starts, ends, order, base, used - base, habits
            ):
                return -1, o
            i, o = _step(data, i, out, o)
            if depth == 0:
                return i, o
            depth -= 1
            used = base
        else:
            # At a name or, in a list, at a value.
            if is_map[depth]:
                if byte_at(data, i) != QUOTE or used >= len(starts):
                    return -1, o
                put_byte(out, o, QUOTE)
                starts[used] = o + 1
                i, o = copy_plain_string(data, i + 1, out, o + 1)
                if i < 0:
                    return -1, o
                ends[used] = o
                used += 1
                word = eight_at(data, i)
                if word == _STRING_FOLLOWS or word == _NUMBER_FOLLOWS:
                    # Most members, in compact JSON.
                    put_eight(out, o, word)
                    if word == _STRING_FOLLOWS:
                        i, o = copy_string(data, i + 8, out, o + 8)
                    else:
                        i, o = copy_number(data, i + 8, out, o + 8)
                    if i < 0:
                        return -1, o
                    word = eight_at(data, i)
                    put_eight(out, o, word)
                    if word & _THREE_BYTES == _MEMBER_FOLLOWS:
                        i = skip_blanks(data, i + 3)
                        o += 3
                        continue
                    i, o, more = _close_value(data, skip_blanks(data, i + 1), out, o + 1)
                    if i < 0:
                        return -1, o
                    ended = not more
                    continue
                i, o = _step(data, i, out, o)
                if byte_at(data, i) != COLON:
                    return -1, o
                i, o = _step(data, i, out, o)
            tag, i, o = _open_value(data, i, out, o)
            if tag < 0:
                return -1, o
            if NULL < tag < SS:
                if byte_at(data, i) != (OPEN if tag == M else OPEN_LIST) or depth + 1 >= len(bases):
                    return -1, o
                depth += 1
                is_map[depth], bases[depth] = tag == M, used
                i, o = _step(data, i, out, o)
                ended = byte_at(data, i) == (CLOSE if tag == M else CLOSE_LIST)
                continue
            if tag >= SS:
                i, o = _copy_set(data, i, tag, out, o, starts, ends, order, used)
            else:
                i, o = _copy_scalar(data, i, tag, out, o)
            if i < 0:
                return -1, o
        i, o, more = _close_value(data, i, out, o)
        if i < 0:
            return -1, o
        ended = not more


@compiled
def _step(data, i, out, o):
    """Copy the character at `i`, then skip blanks."""
    put_byte(out, o, byte_at(data, i))
    return skip_blanks(data, i + 1), o + 1


@compiled
def _open_value(data, i, out, o):
    """Copy a value's tag, up to its content: `{"S":`."""
    if byte_at(data, i) != OPEN:
        return -1, i, o
    i, o = _step(data, i, out, o)
    tag, size = read_tag(data, i + 1)
    if tag < 0 or byte_at(data, i) != QUOTE:
        return -1, i, o
    o = copy_bytes(data, i, i + 1 + size, out, o)
    i = skip_blanks(data, i + 1 + size)
    if byte_at(data, i) != COLON:
        return -1, i, o
    i, o = _step(data, i, out, o)
    return tag, i, o


@compiled
def _close_value(data, i, out, o):
    """Copy a value's closing brace and the comma after it, if any."""
    if byte_at(data, i) != CLOSE:
        return -1, o, False
    i, o = _step(data, i, out, o)
    if byte_at(data, i) != COMMA:
        return i, o, False
    i, o = _step(data, i, out, o)
    return i, o, True


@compiled
def _copy_scalar(data, i, tag, out, o):
    """Copy the content of a value of one of the first five types, and skip blanks."""
    if tag > B:
        i, o = copy_word(data, i, out, o, tag == NULL)
        return (skip_blanks(data, i) if i >= 0 else -1), o
    if byte_at(data, i) != QUOTE:
        return -1, o
    put_byte(out, o, QUOTE)
    if tag == S:
        i, o = copy_string(data, i + 1, out, o + 1)
    elif tag == N:
        i, o = copy_number(data, i + 1, out, o + 1)
    else:
        i, o = copy_base64(data, i + 1, out, o + 1)
    if i < 0:
        return -1, o
    return _step(data, i, out, o)


@compiled
def _copy_set(data, i, tag, out, o, starts, ends, order, base):
    """Write a sorted set without repeats, from its bracket to after its closing one and blanks."""
    if byte_at(data, i) != OPEN_LIST:
        return -1, o
    i, o = _step(data, i, out, o)
    first, count, ascending = o, 0, True
    while True:
        if byte_at(data, i) != QUOTE or base + count >= len(starts):
            return -1, o
        put_byte(out, o, QUOTE)
        starts[base + count] = o + 1
        if tag == SS:
            i, o = copy_plain_string(data, i + 1, out, o + 1)
        elif tag == NS:
            i, o = copy_number(data, i + 1, out, o + 1)
        else:
            i, o = copy_base64(data, i + 1, out, o + 1)
        if i < 0:
            return -1, o
        place = base + count
        ends[place] = o
        order[place] = place
        if count and ascending:
            before = place - 1
            ascending = (
                compare_members(tag, out, starts[before], ends[before], starts[place], ends[place])
                < 0
            )
        count += 1
        i, o = _step(data, i, out, o)
        if byte_at(data, i) == CLOSE_LIST:
            break
        if byte_at(data, i) != COMMA:
            return -1, o
        i, o = _step(data, i, out, o)
    if not ascending:
        sort_members(tag, out, starts, ends, order, base, count)
        o = write_set_in_order(tag, out, first, o, starts, ends, order, base, count)
    return _step(data, i, out, o)
