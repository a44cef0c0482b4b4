"""Failures that users of other tools reported, as tests of the lake's tables.

Those about capture are in capture/test_peers.py.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.shards.drain import capture_table
from cdc_pipeline.capture.sources.source_choice import open_source
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.names import safe_name
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    key_of,
    plain_view,
    temporary_lake,
)
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

_VIEW = "SELECT * FROM orders.current_state ORDER BY _key"


@pytest.fixture
def built() -> Iterator[LakeBuilder]:
    with temporary_lake() as lake:
        lake.start()
        yield lake


def _ready(built: LakeBuilder, items: dict[str, Any]) -> None:
    built.stage(items)
    built.read_to(START_US + MARGIN_US)


def _states(built: LakeBuilder) -> Iterator[list[dict[str, Any]]]:
    """The view before and after publication: both must show the same."""
    publish_current_state(built.table_lake)
    yield plain_view(built.lake, _VIEW)


def test_a_field_that_comes_later_is_a_column__airbyte_54730(built: LakeBuilder) -> None:
    """airbyte #54730: new fields are never detected."""
    _ready(built, {f"k{n}": {} for n in range(200)})
    publish_current_state(built.table_lake)
    assert "late" not in plain_view(built.lake, _VIEW)[0]
    built.land([change("k7", 1, {"late": {"S": "here"}})])
    for _ in range(2):  # merged at read, then published
        rows = {row["_key"]: row["late"] for row in plain_view(built.lake, _VIEW)}
        assert [late for late in rows.values() if late] == ["here"]
        publish_current_state(built.table_lake)


def test_no_attribute_is_dropped_silently__scylla_migrator_103(built: LakeBuilder) -> None:
    """scylla-migrator #103: attributes that do not fit are dropped."""
    odd = {"a": {"S": "x"}, "A": {"N": "1"}, "": {"BOOL": True}, "a.b": {"L": [{"S": "y"}]}}
    mixed = {"a": {"NS": ["1", "2"]}, "A": {"S": "x"}, "": {"NULL": True}, "a.b": {"B": "AA=="}}
    _ready(built, {"k1": odd, "k2": mixed, "k3": odd})
    for rows in _states(built):
        for row, item in zip(rows, (odd, mixed, odd), strict=True):
            name = json.loads(row["_key"])["pk"]["S"]
            assert json.loads(row["_item"]) == {**item, **key_of(name)}
        rescued = json.loads(rows[1]["_rescued"])
        assert rescued == {name: value for name, value in mixed.items() if name != ""}


def test_an_empty_table__airbyte_43408(built: LakeBuilder) -> None:
    """airbyte #43408: an empty table fails."""
    _ready(built, {})
    for rows in _states(built):
        assert rows == []
    built.land([change("first", 1, {"n": {"N": "1"}})])
    assert [row["n"] for row in plain_view(built.lake, _VIEW)] == [1]
    built.land([change("first", 2, None)])
    for rows in _states(built):
        assert rows == []


def test_items_are_told_apart_by_their_whole_key__airbyte_40730() -> None:
    """airbyte #40730: wrong primary key, so rows of one partition key overwrite each other."""
    with temporary_lake() as built:
        built.start()
        _ready(built, {})
        # `change` makes keys of one attribute; a sort key makes other keys of it.
        rows = []
        for number, sort in enumerate(("1", "2", "10"), start=1):
            made = change("same", number, {"sk": {"N": sort}})
            keys = json.dumps({**key_of("same"), "sk": {"N": sort}}, separators=(",", ":"))
            rows.append(made._replace(keys=keys))
        built.land(rows)
        for found in _states(built):
            assert sorted(row["sk"] for row in found) == [1, 2, 10]


@pytest.mark.parametrize(
    "word", ["select", "order", "user", "group", "date", "_key", "a-b", "ümläut"]
)
def test_reserved_words_and_dashes__airbyte_19739_22508(built: LakeBuilder, word: str) -> None:
    """airbyte #19739 and #22508: attributes or tables named like SQL words, or with dashes."""
    _ready(built, {"k": {word: {"S": "x"}}})
    for (row,) in _states(built):
        assert "x" in [value for name, value in row.items() if not name.startswith("_item")]
        assert json.loads(row["_item"])[word] == {"S": "x"}
    assert safe_name("My-Table.v2") == "my_table_v2"


def test_a_number_as_the_key__airbyte_71171(built: LakeBuilder) -> None:
    """airbyte #71171: an integer cursor crashes."""
    _ready(built, {})
    made = change("1", 1, {"n": {"N": "1"}})
    item = {"pk": {"N": "42"}, "n": {"N": "1"}}
    number = {
        "keys": '{"pk":{"N":"42"}}',
        "new_image": json.dumps(item, separators=(",", ":"), sort_keys=True),
        "data": '{"n":1,"pk":42}',
    }
    built.land([made._replace(**number)])
    for (row,) in _states(built):
        assert (row["pk"], row["n"]) == (42, 1)


def test_lists_can_be_read__aws_sdk_pandas_2424(built: LakeBuilder) -> None:
    """aws-sdk-pandas #2424: lists come out unreadable."""
    nested = {"L": [{"N": "1.50"}, {"S": "b"}, {"M": {"c": {"NULL": True}}}, {"L": []}]}
    _ready(built, {"k": {"l": nested, "tags": {"SS": ["b", "a"]}, "sizes": {"NS": ["10", "2"]}}})
    for (row,) in _states(built):
        assert json.loads(row["l"]) == [1.5, "b", {"c": None}, []]
        assert row["tags"] == ["a", "b"]
        assert row["sizes"] == [2, 10]
        sql = "SELECT l->>'$[1]', list_sum(sizes) FROM orders.current_state"
        assert list(plain_view(built.lake, sql)[0].values()) == ["b", 12]


def test_a_run_describes_its_table_once__aws_sdk_pandas_3202(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aws-sdk-pandas #3202: a DescribeTable with every call costs money and throttles."""
    with StreamsSimulator(clock=time.time) as sim:
        use(sim, monkeypatch)
        sim.create_table("orders", shards=4)
        for number in range(3000):
            sim.put("orders", {"pk": {"S": str(number)}, "n": {"N": "1"}})
        raw = {"lake": "lake", "region": "us-east-1", "tables": [{"name": "orders"}]}
        settings = parse_settings(raw, tmp_path / "settings.yaml")
        lake = Lake(settings, session(sim), LocalStore(settings.lake_folder))
        table = settings.tables[0]
        options = CaptureOptions(poll_seconds=0.01, empty_polls=2, flush_rows=200)
        result = capture_table(lake.table(table).log, open_source(lake.table(table)), options)
        assert result.rows == 3000
        calls = [request.operation for request in sim.requests]
        assert calls.count("DescribeTable") == 1
        assert calls.count("GetRecords") > 8


def test_deletes_come_first__hudi_6590_8278(built: LakeBuilder) -> None:
    """hudi #6590 and #8278: deletes throw. Here the very first change is one, and the last."""
    _ready(built, {"there": {"n": {"N": "1"}}})
    built.land([change("never seen", 1, None), change("there", 2, None)])
    for rows in _states(built):
        assert rows == []
    built.land([change("there", 3, {"n": {"N": "2"}}), change("other", 4, None)])
    for (row,) in _states(built):
        assert row["n"] == 2
    built.land([change("there", 5, None)])
    for rows in _states(built):
        assert rows == []
    day = build_cdc_day(built.table_lake, day_of(START_US))
    assert day.rows == 5
    history = (
        "SELECT op, is_current FROM orders.history WHERE item_key LIKE '%there%' ORDER BY order_key"
    )
    found = [tuple(row.values()) for row in plain_view(built.lake, history)]
    assert found == [("D", False), ("U", False), ("D", False)]
