"""Base64 text: canonical spelling, and order by its decoded bytes."""

from cdc_pipeline.transform.fast.compiler import compiled
from cdc_pipeline.transform.fast.memory import NONE, byte_at, byte_table, copy_bytes
from cdc_pipeline.transform.fast.tokens import QUOTE

_EQUALS = 61
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
SIX_BITS = byte_table({byte: place for place, byte in enumerate(_BASE64)})


@compiled
def copy_base64(data, i, out, o):
    """Copy canonical base64; refuse any other."""
    start = i
    while byte_at(SIX_BITS, byte_at(data, i)) != NONE:
        i += 1
    if byte_at(data, i) == _EQUALS:
        unused = 3
        last = i - 1
        i += 1
        if byte_at(data, i) == _EQUALS:
            unused = 15
            i += 1
        if last < start or byte_at(SIX_BITS, byte_at(data, last)) & unused:
            return -1, o
    if byte_at(data, i) != QUOTE or (i - start) % 4:
        return -1, o
    return i, copy_bytes(data, start, i, out, o)


@compiled
def compare_base64(out, a, a_end, b, b_end):
    """Compare by decoded bytes: padding is less than any digit."""
    while a < a_end and b < b_end:
        if byte_at(out, a) != byte_at(out, b):
            # Padding is no digit, so 255; plus one, modulo 256, it is less than any digit.
            a_digit, b_digit = (
                byte_at(SIX_BITS, byte_at(out, a)),
                byte_at(SIX_BITS, byte_at(out, b)),
            )
            return -1 if (a_digit + 1) & 255 < (b_digit + 1) & 255 else 1
        a += 1
        b += 1
    if a < a_end:
        return 1
    return -1 if b < b_end else 0
