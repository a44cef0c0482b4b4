"""Canonical maps and lists as plain JSON."""

import numpy as np

from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import byte_at, copy_bytes, put_byte
from cdc_pipeline.transform.fast.tokens import (
    BOOL,
    CLOSE,
    CLOSE_LIST,
    COMMA,
    MAX_DEPTH,
    NS,
    NULL,
    OPEN,
    QUOTE,
    SS,
    B,
    M,
    N,
    read_tag,
    skip_nested,
    skip_string,
)

_NULL_WORD = np.frombuffer(b"null    ", np.uint8)


@compiled
def plain_json(data, starts, ends, offsets, out):
    """Convert canonical maps and lists to plain JSON."""
    is_map = np.empty(MAX_DEPTH, np.bool_)
    o = 0
    for r in range(len(starts)):
        if starts[r] >= 0:
            o = _copy_plain(data, np.int64(starts[r]), np.int64(ends[r]), out, o, is_map)
            if o < 0:
                return False
        offsets[r + 1] = o
    return True


@compiled
def _copy_plain(data, i, end, out, o, is_map):
    """Write the plain JSON of the canonical map or list at `i`; returns its end in `out`."""
    depth = 0
    is_map[0] = byte_at(data, i) == OPEN
    i, o = _step(data, i, out, o)
    ended = byte_at(data, i) == _closing(is_map[0])
    while True:
        if ended:
            if byte_at(data, i) != _closing(is_map[depth]):
                return -1
            i, o = _step(data, i, out, o)
            if depth == 0:
                return o if i == end else -1
            depth -= 1
        else:
            # At a name or, in a list, at a value.
            if is_map[depth]:
                stop = skip_string(data, i + 1, end)
                if stop < 0 or stop + 2 >= end:
                    return -1
                o = copy_bytes(data, i, stop + 2, out, o)
                i = stop + 2
            if i + 7 >= end:  # {"S":...
                return -1
            tag, size = read_tag(data, i + 2)
            if tag < 0:
                return -1
            i += 2 + size + 1
            if NULL < tag < SS:
                if depth + 1 >= len(is_map):
                    return -1
                depth += 1
                is_map[depth] = tag == M
                i, o = _step(data, i, out, o)
                if i >= end:
                    return -1
                ended = byte_at(data, i) == _closing(is_map[depth])
                continue
            if tag <= B:
                # Most values; inlining this case saves a quarter of the time.
                stop = skip_string(data, i + 1, end)
                if stop < 0:
                    return -1
                quote = 0 if tag == N else 1
                o = copy_bytes(data, i + 1 - quote, stop + quote, out, o)
                i = stop + 1
            else:
                i, o = _copy_content(data, i, end, tag, out, o)
                if i < 0:
                    return -1
        i += 1  # the brace that closes the value
        if i >= end:
            return -1
        ended = byte_at(data, i) != COMMA
        if not ended:
            i, o = _step(data, i, out, o)


@compiled
def _closing(is_map):
    return CLOSE if is_map else CLOSE_LIST


@compiled
def _step(data, i, out, o):
    """Copy one character."""
    put_byte(out, o, byte_at(data, i))
    return i + 1, o + 1


@compiled
def _copy_content(data, i, end, tag, out, o):
    """Copy words and sets, from their content to the value's closing brace."""
    if tag == NULL:
        return i + 4, copy_bytes(_NULL_WORD, 0, 4, out, o)
    if tag == BOOL:
        while i < end and byte_at(data, i) != CLOSE:
            i, o = _step(data, i, out, o)
        return i, o
    stop = skip_nested(data, i, end)
    if stop < 0:
        return -1, o
    if tag != NS:
        return stop, copy_bytes(data, i, stop, out, o)
    for k in range(i, stop):
        if byte_at(data, k) != QUOTE:
            put_byte(out, o, byte_at(data, k))
            o += 1
    return stop, o
