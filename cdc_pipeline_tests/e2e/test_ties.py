"""Ties on real stores and with a real table to read from."""

import time
from typing import Any

import pytest

from cdc_pipeline.capture.landing.lander import Lander
from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.changes.kinesis import from_envelope
from cdc_pipeline.core.log.entries import StreamRef
from cdc_pipeline.core.log.state import Entry
from cdc_pipeline.lake.storage.log import new_nonce
from cdc_pipeline_tests.e2e.world import World, key

pytestmark = pytest.mark.slow

_MS = int(time.time()) * 1000
_PADDING = "x" * 400


def _change(pk: str, ms: int, before: str | None, after: str | None) -> Change:
    body: dict[str, Any] = {"Keys": key(pk), "ApproximateCreationDateTime": ms}
    for part, text in (("OldImage", before), ("NewImage", after)):
        if text is not None:
            body[part] = key(pk) | {"n": {"S": text}, "padding": {"S": _PADDING + pk}}
    op = "INSERT" if before is None else "REMOVE" if after is None else "MODIFY"
    return from_envelope({"eventName": op, "eventID": f"{ms}", "dynamodb": body}, table_id="T")


def test_what_has_landed_is_found_and_a_cycle_is_read(world: World) -> None:
    world.make_table("orders")
    world.configure("orders")
    world.put("orders", "cycle", n={"S": "B"}, padding={"S": f"{_PADDING}cycle"})
    lake, table = world.lake(), world.table("orders")
    log = lake.table(table).log
    state = log.load()
    stream = StreamRef("T", "arn", "NEW_AND_OLD_IMAGES", 1, _MS * 1000, transport="kinesis")
    assert log.append(state, Entry(0, new_nonce(), "test", 0, stream=stream))
    reader = ItemReader(lake.table(table).source, "orders", ("pk", "sk"), 1000)
    source = Source("orders", "T", "arn", "NEW_AND_OLD_IMAGES", None, reader)  # type: ignore[arg-type]
    lander = Lander(log, state, source, CaptureResult("orders"), lambda objects: None)
    # An object that is read in parts, and one that is read whole.
    many = [_change(f"{n * 7919:x}-{n * n:x}", _MS + n // 4, None, f"{n}") for n in range(12_000)]
    lander.land([*many, _change("chain", _MS + 2900, "B", "C")], [], dict)
    lander.land([_change("cycle", _MS + 2900, "A", "B")], [], dict)
    late = [_change("chain", _MS + 2900, "A", "B"), _change("cycle", _MS + 2900, "B", "A")]
    lander.land(late, [], dict)
    sizes = [landed.bytes for landed in state.objects.values()]
    assert sizes[0] > 256 << 10 > sizes[1]
    found = world.rows(
        "SELECT keys->>'$.pk.S', new_image->>'$.n.S', substr(position, 48), transport "
        "FROM orders.raw_stream WHERE keys LIKE '%c%' AND new_image->>'$.n.S' BETWEEN 'A' AND 'Z' "
        "ORDER BY keys, position, new_image",
        "orders",
    )
    assert found == [
        ("chain", "B", "", "kinesis"),
        ("chain", "C", "", "kinesis"),
        ("chain", "C", ".0001", "kinesis"),
        ("cycle", "A", "", "kinesis"),
        ("cycle", "B", "", "kinesis"),
        ("cycle", "B", ".0001", "kinesis"),
        ("cycle", "B", ".read", "read"),
    ]
