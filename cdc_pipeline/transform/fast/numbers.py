"""Decimal numbers as text: canonical spelling, order and width."""

from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import byte_at, compare_bytes, copy_bytes
from cdc_pipeline.transform.fast.tokens import QUOTE

MINUS, DOT, ZERO = 45, 46, 48
_NINE, _E = 57, 69
_MAX_NUMBER = 38


@compiled
def is_digit(c):
    """Whether a byte is a decimal digit."""
    return ZERO <= c <= _NINE


@compiled
def copy_number(data, i, out, o):
    """Copy a canonical number without exponent; refuse any other."""
    start = i
    if byte_at(data, i) == MINUS:
        i += 1
    if byte_at(data, i) == ZERO:
        i += 1
        if byte_at(data, i) != DOT and (byte_at(data, i) != QUOTE or i != start + 1):
            return -1, o
    else:
        first = i
        while is_digit(byte_at(data, i)):
            i += 1
        if i == first:
            return -1, o
    if byte_at(data, i) == DOT:
        i += 1
        first = i
        while is_digit(byte_at(data, i)):
            i += 1
        if i == first or byte_at(data, i - 1) == ZERO:
            return -1, o
    if byte_at(data, i) != QUOTE or i - start > _MAX_NUMBER:
        return -1, o
    return i, copy_bytes(data, start, i, out, o)


@compiled
def _whole_digits(out, a, end):
    i = a
    while i < end and byte_at(out, i) != DOT:
        i += 1
    return i - a


@compiled
def compare_numbers(out, a, a_end, b, b_end):
    """Compare canonical numbers without exponents by value."""
    sign = 1
    if byte_at(out, a) == MINUS:
        if byte_at(out, b) != MINUS:
            return -1
        sign = -1
        a += 1
        b += 1
    elif byte_at(out, b) == MINUS:
        return 1
    a_digits, b_digits = _whole_digits(out, a, a_end), _whole_digits(out, b, b_end)
    if a_digits != b_digits:
        return sign if a_digits > b_digits else -sign
    return sign * compare_bytes(out, a, a_end, b, b_end)


@compiled
def measure_number(data, i, end, attribute, integer_digits, scales):
    """Measure a canonical number, as in `core.items.columns.AttributeStats`."""
    if byte_at(data, i) == MINUS:
        i += 1
    elif end - i == 1 and byte_at(data, i) == ZERO:
        integer_digits[attribute] = max(integer_digits[attribute], 1)
        return True
    digits, fraction, dot = 0, 0, False
    while i < end and (is_digit(byte_at(data, i)) or byte_at(data, i) == DOT):
        if byte_at(data, i) == DOT:
            dot = True
        else:
            fraction += dot
            digits += digits > 0 or byte_at(data, i) != ZERO
        i += 1
    exponent = -fraction
    if i < end:
        if byte_at(data, i) != _E or i + 2 >= end:  # E+100, E-130
            return False
        power = 0
        for k in range(i + 2, end):
            if not is_digit(byte_at(data, k)) or power > 999:
                return False
            power = power * 10 + (byte_at(data, k) - ZERO)
        exponent += -power if byte_at(data, i + 1) == MINUS else power
    integer_digits[attribute] = max(integer_digits[attribute], digits + exponent)
    scales[attribute] = max(scales[attribute], -exponent)
    return True
