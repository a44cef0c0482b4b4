"""Compilation ahead of use, such as while an image is built: `python -m` this module."""

import json

from cdc_pipeline.core.items.columns import columns_of
from cdc_pipeline.transform import fast
from cdc_pipeline.transform.shred import arrow_type

# A value for each type of column.
_ITEM = {
    "id": {"S": "a\n"},
    "integer": {"N": "1"},
    "decimal": {"N": "1.5"},
    "flag": {"BOOL": True},
    "nothing": {"NULL": True},
    "bytes": {"B": "AQI="},
    "nested": {"M": {"list": {"L": [{"N": "1"}, {"S": "a"}]}}},
    "texts": {"SS": ["a", "b"]},
    "numbers": {"NS": ["1", "2"]},
    "decimals": {"NS": ["1.5", "2"]},
    "blobs": {"BS": ["AQI=", "Aw=="]},
}


def precompile() -> bool:
    """Fill Numba's cache, in some 25 CPU seconds; False: the extra `fast` is not installed.

    Later processes of this Python, on processors of this kind, only load the code.
    """
    reader, counter = fast.line_reader(["id"]), fast.stats_reader()
    if reader is None or counter is None:
        return False
    lines = reader.read(json.dumps({"Item": _ITEM}).encode() + b"\n")
    if lines is None or not len(lines.items) or not counter.read(lines.items):
        raise AssertionError("compiled code did not understand an ordinary item")
    columns = columns_of(counter.stats())
    shredder = fast.shredder(columns, [arrow_type(column.type) for column in columns])
    if shredder is None or shredder.shred(lines.items) is None:
        raise AssertionError("compiled code did not type an ordinary item")
    return True


if __name__ == "__main__":
    print("compiled" if precompile() else "nothing to compile: the extra `fast` is not installed")
