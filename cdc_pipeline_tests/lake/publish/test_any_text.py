"""Any text that DynamoDB takes goes through every table that we write."""

import json
from pathlib import Path
from typing import Any

import pyiceberg.io.pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.items.attributes import canonical_item, plain_json, to_json
from cdc_pipeline.core.items.columns import SYSTEM_COLUMNS
from cdc_pipeline.lake.iceberg.writer import upper_text_bound
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.publish.ttl_archive import build_archive_day
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    key_of,
    plain_view,
    temporary_lake,
)

_CUT = 16
_PATCHED = "truncate_upper_bound_text_string"
_BEFORE_SURROGATES = "\ud7ff"
_EDGES = [chr(n) for n in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF)]

wide_texts = st.text(
    st.sampled_from(_EDGES) | st.characters(exclude_categories=("Cs",)),
    min_size=_CUT - 1,
    max_size=_CUT + 3,
)
"""Texts around the length at which Iceberg cuts bounds, of all planes."""


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


@given(wide_texts, st.integers(1, _CUT + 4))
@example("a" * 15 + _BEFORE_SURROGATES + "b", _CUT)
@example(chr(0x10FFFF) * 17, _CUT)
@example(_BEFORE_SURROGATES + chr(0x10FFFF) * 16, _CUT)
def test_an_upper_bound_is_text_and_above(text: str, length: int) -> None:
    bound = upper_text_bound(text, length)
    if bound is None:
        assert text[:length] == chr(0x10FFFF) * length
        assert len(text) > length
    else:
        assert len(bound) <= length
        assert bound.encode() >= text.encode()
        assert bound == text or len(text) > length


def test_no_length_is_no_cut() -> None:
    assert upper_text_bound("a" * 99, None) == "a" * 99


_OPTIONS = {"tables": [{"name": "orders", "ttl_archive": True}]}


def _build_everything(built: LakeBuilder, key: str, attributes: dict[str, Any]) -> None:
    """Every table, from an item, an update, a delete by TTL and an erasure that hold the texts."""
    _write_aggregates(built)
    others = [key + "expired", key + "erased"]
    built.start()
    built.stage({name: attributes for name in [key, *others]})
    built.read_to(START_US + MARGIN_US)
    publish_current_state(built.table_lake)
    expired = change(others[0], 4, None)._replace(
        is_ttl_delete=True, old_image=to_json(canonical_item(attributes | key_of(others[0])))
    )
    built.land([change(key, 3, attributes), expired])
    built.read_to(START_US + 60_000_000)
    current = publish_current_state(built.table_lake).table
    built.lake.iceberg.remove_rows(current, "_key", [to_json(key_of(others[1]))])
    days = sorted({day_of(START_US + n * 1_000_000) for n in (3, 4)})
    for day in days:
        build_cdc_day(built.table_lake, day)
        build_archive_day(built.table_lake, day)
    for aggregate in load_aggregates(built.lake.settings.aggregates_folder):
        build_aggregate(built.lake, aggregate, days[0] if aggregate.daily else None)


def _write_aggregates(built: LakeBuilder) -> None:
    folder = built.lake.settings.aggregates_folder
    folder.mkdir(parents=True, exist_ok=True)
    select = f"SELECT * EXCLUDE ({', '.join(SYSTEM_COLUMNS)}) FROM orders.current_state"
    (folder / "whole.sql").write_text(select)
    (folder / "daily.sql").write_text(f"-- partitioned: daily\n{select} WHERE $day IS NOT NULL")


def _require_texts(built: LakeBuilder, key: str, attributes: dict[str, Any]) -> None:
    exact = to_json(canonical_item(attributes | key_of(key)))
    texts = [value["S"] for value in attributes.values()]
    (row,) = plain_view(built.lake, "SELECT * FROM orders.current_state")
    assert row["_item"] == exact
    assert [row[name] for name in attributes] == texts
    changes = plain_view(built.lake, "SELECT * FROM orders.cdc ORDER BY order_key")
    assert [c["new_image"] for c in changes] == [exact, None]
    (archived,) = plain_view(built.lake, "SELECT * FROM orders.ttl_archive")
    assert archived["_item"] == to_json(canonical_item(attributes | key_of(key + "expired")))
    assert archived["data"] == plain_json(json.loads(archived["_item"]))
    for name in ("whole", "daily"):
        (counted,) = plain_view(built.lake, f"SELECT * FROM aggregates.{name}")
        assert [counted[attribute] for attribute in attributes] == texts


def test_the_last_character_before_the_surrogates_stops_no_table(tmp_path: Path) -> None:
    built = LakeBuilder.at(tmp_path, **_OPTIONS)
    key = "abc" + _BEFORE_SURROGATES + "d"
    attributes = {"t": {"S": "a" * 15 + _BEFORE_SURROGATES + "b"}}
    _build_everything(built, key, attributes)
    _require_texts(built, key, attributes)


@pytest.mark.slow
@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(wide_texts, min_size=20, max_size=20), wide_texts)
def test_any_text_goes_through_every_table(texts: list[str], key: str) -> None:
    attributes = {f"t{n:02}": {"S": text} for n, text in enumerate(texts)}
    with temporary_lake(**_OPTIONS) as built:
        _build_everything(built, key, attributes)
        _require_texts(built, key, attributes)


def test_pyiceberg_makes_its_bounds_where_ours_stand() -> None:
    assert pyiceberg.io.pyarrow.StatsAggregator.max_as_bytes.__globals__[_PATCHED] is (
        upper_text_bound
    )
