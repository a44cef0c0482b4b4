"""Records of changes, scanned in one pass: fields, and images in canonical form.

Of DynamoDB Streams, and what DynamoDB writes to Kinesis. Only records of the usual form are
supported: known fields, each once, with simple values. The definitions are
`core.changes.change.from_stream_record` and `core.changes.forwarded.from_record`.
"""

import numpy as np

from cdc_pipeline.transform.fast.canonical import HABITS, MAX_MEMBERS, copy_item
from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import as_word, byte_at, copy_bytes, eight_at
from cdc_pipeline.transform.fast.numbers import DOT, ZERO, is_digit
from cdc_pipeline.transform.fast.tokens import (
    BACKSLASH,
    CLOSE,
    COLON,
    COMMA,
    MAX_DEPTH,
    NEWLINE,
    OPEN,
    QUOTE,
    skip_blanks,
    skip_nested,
    skip_string,
)

PLACED = (
    *("Keys", "NewImage", "OldImage", "eventID", "SequenceNumber", "userIdentity"),
    *("tableName", "ApproximateCreationDateTimePrecision"),
)
"""Fields with a position: the images in `out`, the others in `data`."""

FIELDS = (
    *PLACED,
    *("eventName", "ApproximateCreationDateTime", "dynamodb", "SizeBytes"),
    # Text that a change does not use.
    *("StreamViewType", "recordFormat", "eventVersion", "eventSource", "awsRegion"),
)
WHOLE = len(FIELDS)
"""The bit after those of the fields: the time is written as an integer."""

LATEST = 10**17
"""Times are less."""

_KEYS, _, OLD, _EVENT_ID, _NUMBER, _IDENTITY, _, _PRECISION = range(len(PLACED))
_OP, _TIME, _BODY, _SIZE = range(len(PLACED), len(PLACED) + 4)
_INNER = sum(
    1 << FIELDS.index(name)
    for name in (
        *("Keys", "NewImage", "OldImage", "SequenceNumber", "SizeBytes", "StreamViewType"),
        *("ApproximateCreationDateTime", "ApproximateCreationDateTimePrecision"),
    )
)
"""Fields within `dynamodb`, as bits."""
_INSERT, _MODIFY, _REMOVE = range(3)
"""Operations, in the order of `core.changes.change.OPS`."""
_REQUIRED = sum(1 << field for field in (_KEYS, _EVENT_ID, _OP, _TIME, _BODY))
_ROOM = 40
_NAMES = np.frombuffer(b"".join(f'{name}"'.encode().ljust(_ROOM) for name in FIELDS), np.uint8)
_NAME_SIZES = np.array([len(name) + 1 for name in FIELDS], np.int64)
_COUNT = len(FIELDS)

_INSERT_WORD, _MODIFY_WORD = as_word(b'"INSERT"'), as_word(b'"MODIFY"')
_REMOVE_WORD = as_word(b'"REMOVE"')
_NULL, _FOUR_BYTES = as_word(b"null"), as_word(b"\xff" * 4)
_BINARY, _BINARIES = as_word(b'"B":"'), as_word(b'"BS":["')
_FIVE_BYTES, _SEVEN_BYTES = as_word(b"\xff" * 5), as_word(b"\xff" * 7)
_PLUS, _MINUS, _UPPER_E, _LOWER_E = 43, 45, 69, 101
_MOST_DIGITS = 17
_LONGEST_NUMBER = 40


@compiled
def read_records(data, record_ends, out, starts, ends, ops, times, found):
    """Scan records, each followed by a newline at its `record_ends`.

    After the last newline `data` has 8 spare bytes; `out`, for canonical images, has twice its
    size. `starts` and `ends` have a row per field; a start of -1 means no such field, or null.
    `ops`, `times` (of the write), `found` (bits of `FIELDS` and `WHOLE`) are by record. An
    unsupported record has 0 in `found` and no fields.
    """
    name_starts = np.empty(MAX_MEMBERS, np.int64)
    name_ends = np.empty(MAX_MEMBERS, np.int64)
    order = np.empty(MAX_MEMBERS, np.int64)
    bases = np.empty(MAX_DEPTH, np.int64)
    is_map = np.empty(MAX_DEPTH, np.bool_)
    habits = np.empty((HABITS, HABITS), np.int64)
    habits[:, :] = np.arange(HABITS)
    i, o = 0, 0
    for r in range(len(record_ends)):
        end = record_ends[r]
        _clear(starts, ends, r)
        after, written, fields = _read_record(
            data,
            i,
            end,
            out,
            o,
            r,
            starts,
            ends,
            ops,
            times,
            name_starts,
            name_ends,
            order,
            is_map,
            bases,
            habits,
        )
        found[r] = fields if after == end else 0
        if after == end:
            o = written
        else:
            _clear(starts, ends, r)
        i = end + 1


@compiled
def _clear(starts, ends, r):
    for field in range(len(starts)):
        starts[field, r] = -1
        ends[field, r] = -1


@compiled
def _read_record(
    data,
    i,
    end,
    out,
    o,
    r,
    starts,
    ends,
    ops,
    times,
    name_starts,
    name_ends,
    order,
    is_map,
    bases,
    habits,
):
    """Scan one record; returns the position after it, the end of its images, and `found`."""
    i = skip_blanks(data, i)
    if byte_at(data, i) != OPEN:
        return -1, o, 0
    i = skip_blanks(data, i + 1)
    found, is_inner = 0, False
    while True:
        # At a name.
        field = _field(data, i)
        if field < 0 or found >> field & 1 or (_INNER >> field & 1) != is_inner:
            return -1, o, 0
        found |= 1 << field
        i = skip_blanks(data, i + 1 + _NAME_SIZES[field])
        if byte_at(data, i) != COLON:
            return -1, o, 0
        i = skip_blanks(data, i + 1)
        if field == _BODY:
            if byte_at(data, i) != OPEN:
                return -1, o, 0
            is_inner = True
            i = skip_blanks(data, i + 1)
            continue
        is_null = eight_at(data, i) & _FOUR_BYTES == _NULL
        if is_null and field > _KEYS and (field <= OLD or field == _IDENTITY):
            i += 4
        elif field <= OLD:
            starts[field, r] = o
            i, o = copy_item(data, i, out, o, name_starts, name_ends, order, is_map, bases, habits)
            ends[field, r] = o
        elif field == _IDENTITY:
            starts[field, r] = i
            i = skip_nested(data, i, end) if byte_at(data, i) == OPEN else -1
            ends[field, r] = i
        elif field <= _PRECISION:
            starts[field, r] = i + 1
            i = _skip_number(data, i) if field == _NUMBER else _skip_text(data, i)
            ends[field, r] = i - 1
            if i - 1 <= starts[field, r]:  # unsupported, or empty
                return -1, o, 0
        elif field == _OP:
            i, ops[r] = _read_op(data, i)
        elif field == _TIME:
            i, times[r], is_whole = _read_time(data, i)
            found |= is_whole << WHOLE
        elif field == _SIZE:
            i = _skip_integer(data, i)
        else:
            i = _skip_text(data, i)
        if i < 0:
            return -1, o, 0
        i = skip_blanks(data, i)
        if is_inner and byte_at(data, i) == CLOSE:
            is_inner = False
            i = skip_blanks(data, i + 1)
        if byte_at(data, i) == COMMA:
            i = skip_blanks(data, i + 1)
        elif byte_at(data, i) == CLOSE and not is_inner:
            i = skip_blanks(data, i + 1)
            break
        else:
            return -1, o, 0
    if found & _REQUIRED != _REQUIRED or byte_at(data, i) != NEWLINE:
        return -1, o, 0
    return i, o, found


@compiled
def _field(data, i):
    """Return the field named at the quote `i`."""
    if byte_at(data, i) != QUOTE:
        return -1
    for field in range(_COUNT):
        size = _NAME_SIZES[field]
        k = 0
        while k < size and byte_at(data, i + 1 + k) == byte_at(_NAMES, field * _ROOM + k):
            k += 1
        if k == size:
            return field
    return -1


@compiled
def _skip_text(data, i):
    """Skip a string of printable ASCII without escapes."""
    if byte_at(data, i) != QUOTE:
        return -1
    i += 1
    while byte_at(data, i) != QUOTE:
        c = byte_at(data, i)
        if c < 0x20 or c > 0x7E or c == BACKSLASH:
            return -1
        i += 1
    return i + 1


@compiled
def _skip_number(data, i):
    """Skip a sequence number: a string of digits."""
    if byte_at(data, i) != QUOTE:
        return -1
    start = i + 1
    i = start
    while is_digit(byte_at(data, i)):
        i += 1
    return i + 1 if byte_at(data, i) == QUOTE and i - start <= _LONGEST_NUMBER else -1


@compiled
def _skip_integer(data, i):
    """Skip a JSON integer, not negative."""
    start = i
    while is_digit(byte_at(data, i)):
        i += 1
    is_usual = i == start + 1 or (i > start and byte_at(data, start) != ZERO)
    return i if is_usual else -1


@compiled
def _read_op(data, i):
    word = eight_at(data, i)
    if word == _MODIFY_WORD:
        return i + 8, _MODIFY
    if word == _INSERT_WORD:
        return i + 8, _INSERT
    if word == _REMOVE_WORD:
        return i + 8, _REMOVE
    return -1, 0


@compiled
def _read_time(data, i):
    """Parse whole units: `1480640520`, `1480640520.0` or, in AWS's examples, `1.48064052E9`.

    Also returns whether it is written as an integer.
    """
    if not is_digit(byte_at(data, i)) or byte_at(data, i) == ZERO:
        return -1, 0, False
    value, power, start, is_whole = 0, 0, i, True
    while is_digit(byte_at(data, i)) and i - start < _MOST_DIGITS:
        value = value * 10 + (byte_at(data, i) - ZERO)
        i += 1
    if byte_at(data, i) == DOT:
        is_whole = False
        i += 1
        first = i
        while is_digit(byte_at(data, i)) and i - start < _MOST_DIGITS:
            value = value * 10 + (byte_at(data, i) - ZERO)
            i += 1
        power = first - i
        if power == 0:
            return -1, 0, False
    if byte_at(data, i) == _UPPER_E or byte_at(data, i) == _LOWER_E:
        is_whole = False
        i += 1
        negative = byte_at(data, i) == _MINUS
        if negative or byte_at(data, i) == _PLUS:
            i += 1
        if not is_digit(byte_at(data, i)) or is_digit(byte_at(data, i + 2)):
            return -1, 0, False
        exponent = 0
        while is_digit(byte_at(data, i)):
            exponent = exponent * 10 + (byte_at(data, i) - ZERO)
            i += 1
        power += -exponent if negative else exponent
    while power < 0:
        if value % 10 != 0:
            return -1, 0, False
        value //= 10
        power += 1
    while power > 0 and value < LATEST:
        value *= 10
        power -= 1
    # What stands here after too many digits ends no number.
    return (i if value < LATEST else -1), value, is_whole


@compiled
def copy_texts(data, starts, ends, offsets, out):
    """Copy the texts one after the other."""
    o = 0
    for r in range(len(starts)):
        if starts[r] >= 0:
            o = copy_bytes(data, np.int64(starts[r]), np.int64(ends[r]), out, o)
        offsets[r + 1] = o
    return True


@compiled
def match_keys(data, starts, ends, pieces, piece_ends, matched):
    """Find canonical keys that consist of the `pieces` with a string between each two of them."""
    for r in range(len(starts)):
        i, end = np.int64(starts[r]), np.int64(ends[r])
        at, is_match = 0, True
        for p in range(len(piece_ends)):
            size = piece_ends[p] - at
            if p:
                i = skip_string(data, i, end)
            if i < 0 or i + size > end:
                is_match = False
                break
            for k in range(size):
                if byte_at(data, i + k) != byte_at(pieces, at + k):
                    is_match = False
            i += size
            at = piece_ends[p]
        matched[r] = is_match and i == end


@compiled
def have_binaries(data, starts, ends, found):
    """Find canonical images with a binary or a set of binaries."""
    for r in range(len(starts)):
        i, end = np.int64(starts[r]), np.int64(ends[r])
        while 0 <= i < end:
            # No text has an unescaped quote, and no name is followed by a quote or bracket.
            word = eight_at(data, i)
            is_binary = word & _FIVE_BYTES == _BINARY or word & _SEVEN_BYTES == _BINARIES
            if is_binary:
                found[r] = True
            i = end if is_binary else i + 1
