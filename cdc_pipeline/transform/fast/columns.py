"""Conversion of one column's values, found by `scan`, to the buffers of an Arrow array."""

import numpy as np

from cdc_pipeline.transform.fast.binary import SIX_BITS
from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import NONE, byte_at, put_byte
from cdc_pipeline.transform.fast.numbers import DOT, MINUS, ZERO, is_digit
from cdc_pipeline.transform.fast.strings import unescape
from cdc_pipeline.transform.fast.tokens import QUOTE, skip_string


@compiled
def split_sets(data, starts, ends, offsets, member_starts, member_ends):
    """Split sets into lists: the end of each among the members, and positions of members.

    Returns the number of members.
    """
    count = 0
    for r in range(len(starts)):
        if starts[r] >= 0:
            i = starts[r] + 1
            while byte_at(data, i) == QUOTE:
                end = skip_string(data, i + 1, ends[r])
                if end < 0:
                    return -1
                member_starts[count] = i + 1
                member_ends[count] = end
                count += 1
                i = end + 2
        offsets[r + 1] = count
    return count


@compiled
def integers(data, starts, ends, values):
    """Convert canonical integers of up to 18 digits."""
    for r in range(len(starts)):
        value = 0
        if starts[r] >= 0:
            i = np.int64(starts[r])
            negative = byte_at(data, i) == MINUS
            if negative:
                i += 1
            if ends[r] - i > 18 or i >= ends[r]:
                return False
            while i < ends[r]:
                if not is_digit(byte_at(data, i)):
                    return False
                value = value * 10 + (byte_at(data, i) - ZERO)
                i += 1
            if negative:
                value = -value
        values[r] = value
    return True


@compiled
def decimals(data, starts, ends, precision, scale, halves):
    """Convert canonical numbers without exponent to one scale, as two halves of 128 bits."""
    limbs = np.zeros(4, np.int64)
    for r in range(len(starts)):
        halves[2 * r] = halves[2 * r + 1] = 0
        if starts[r] < 0:
            continue
        i = np.int64(starts[r])
        negative = byte_at(data, i) == MINUS
        if negative:
            i += 1
        limbs[:] = 0
        value, digits, fraction, dot = 0, 0, 0, False
        while i < ends[r] or fraction < scale:
            digit = 0
            if i < ends[r]:
                if byte_at(data, i) == DOT and not dot:
                    dot = True
                    i += 1
                    continue
                if not is_digit(byte_at(data, i)):
                    return False
                digit = byte_at(data, i) - ZERO
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


@compiled
def booleans(data, starts, values):
    """Convert booleans: `true`, or anything else."""
    for r in range(len(starts)):
        values[r] = starts[r] >= 0 and byte_at(data, starts[r]) == 116


@compiled
def strings(data, starts, ends, offsets, out):
    """Convert strings, without their escapes."""
    o = 0
    for r in range(len(starts)):
        if starts[r] >= 0:
            o = unescape(data, np.int64(starts[r]), np.int64(ends[r]), out, o)
            if o < 0:
                return False
        offsets[r + 1] = o
    return True


@compiled
def binaries(data, starts, ends, offsets, out):
    """Decode canonical base64."""
    o = 0
    for r in range(len(starts)):
        if starts[r] >= 0:
            if (ends[r] - starts[r]) % 4:
                return False
            for i in range(starts[r], ends[r], 4):
                word, digits = 0, 0
                for k in range(4):
                    digit = byte_at(SIX_BITS, byte_at(data, i + k))
                    digits += digit != NONE
                    word = (word << 6) | (digit & 63)
                if digits < 4 and (digits < 2 or i + 4 != ends[r]):
                    return False
                put_byte(out, o, word >> 16)
                put_byte(out, o + 1, word >> 8)
                put_byte(out, o + 2, word)
                o += digits - 1
        offsets[r + 1] = o
    return True
