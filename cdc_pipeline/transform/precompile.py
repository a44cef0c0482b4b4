"""Compilation ahead of use, such as while an image is built: `python -m` this module."""

import json

import pyarrow as pa

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


_RECORD = {
    "eventID": "1",
    "eventName": "INSERT",
    "dynamodb": {
        "ApproximateCreationDateTime": 1_700_000_000,
        "Keys": {"id": _ITEM["id"]},
        "NewImage": _ITEM,
        "SequenceNumber": "1",
    },
}


def precompile() -> bool:
    """Fill Numba's cache, in some 30 CPU seconds; False: the extra `fast` is not installed.

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
    _precompile_records()
    return True


def _precompile_records() -> None:
    from cdc_pipeline.transform.fast.stream.records import read

    found = read([json.dumps(_RECORD).encode()])
    if found is None or not (found.have_keys({"id": "S"}) & found.have_binaries()).all():
        raise AssertionError("compiled code did not understand an ordinary record")
    if found.plain("NewImage") is None or not found.text("eventID").equals(pa.array(["1"])):
        raise AssertionError("compiled code did not convert an ordinary record")


if __name__ == "__main__":
    print("compiled" if precompile() else "nothing to compile: the extra `fast` is not installed")
