"""Masking on a local lake: what readers may see, and what becomes of what was published before."""

import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.changes.change import Change
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import QueryError, SettingsError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.items.masking import Masking
from cdc_pipeline.lake.engine.masking import masking_of
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import is_publication_due, publish_current_state
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.state import fold
from cdc_pipeline.settings.load import parse_settings
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
from cdc_pipeline_tests.strategies import values

_KEY, _OTHER_KEY = "a key of thirty-two characters!!", "another key of 32 characters !!!"
_VARIABLE = "CDC_MASKING_KEY"
_RULES: dict[str, Any] = {
    "pk": {"hash": True},
    "email": {"hash": True},
    "ssn": {"drop": True},
    "name": {"mask": "***"},
    "never": {"drop": True},
}
_TODAY = day_of(START_US)
_YESTERDAY = _TODAY - timedelta(days=1)
_VIEWS = ("current_state", "cdc", "history")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_VARIABLE, _KEY)
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


def _use(built: LakeBuilder, columns: dict[str, Any], **more: Any) -> None:
    """Open the same lake under other rules."""
    root = built.lake.settings.lake_folder
    raw = {
        "lake": "lake",
        "handover_margin_seconds": MARGIN_US / 1_000_000,
        "clock_margin_seconds": 0,
        "tables": [{"name": "orders", "columns": columns, **more}],
    }
    built.lake = Lake.open(parse_settings(raw, root.parent / "settings.yaml"))


def _item(mark: str) -> dict[str, Any]:
    return {
        "email": {"S": f"clear-email-{mark}"},
        "ssn": {"M": {"deep": {"S": f"clear-ssn-{mark}"}}},
        "name": {"SS": [f"clear-name-{mark}"]},
        "total": {"N": "1"},
    }


def _ready(built: LakeBuilder) -> None:
    built.start()
    built.stage({"clear-key-a": _item("a"), "clear-key-b": _item("b"), "clear-key-c": _item("c")})
    built.read_to(START_US + MARGIN_US)


def _change(name: str, number: int, item: dict[str, Any] | None) -> Change:
    """A change that says what was there before."""
    old = canonical_item({**_item("old"), **key_of(name)})
    return change(name, number, item)._replace(old_image=to_json(old))


_CHANGES = [
    _change("clear-key-a", 1, {**_item("a2"), "email": {"N": "77777777"}}),
    _change("clear-key-b", 2, None),
    _change("clear-key-d", 3, _item("d")),
]


def _everything(built: LakeBuilder) -> None:
    """All that can be published: a fold, a delta behind it, cdc, aggregates of both kinds."""
    _ready(built)
    built.land(_CHANGES)
    publish_current_state(built.table_lake)
    built.land([change("clear-key-e", 4, _item("e")), change("clear-key-c", 5, None)])
    build_cdc_day(built.table_lake, _TODAY)
    _aggregates(built, _YESTERDAY, _TODAY)


def _aggregates(built: LakeBuilder, *days: date) -> None:
    folder = built.lake.settings.aggregates_folder
    folder.mkdir(exist_ok=True)
    (folder / "people.sql").write_text(
        "SELECT email, _key, count(*) AS n FROM orders.current_state GROUP BY ALL"
    )
    (folder / "daily.sql").write_text(
        "-- partitioned: daily\nSELECT $day AS day, item_key, item FROM orders.history"
    )
    (folder / "second.sql").write_text("SELECT email FROM aggregates.people")
    every = {a.name: a for a in load_aggregates(folder)}
    build_aggregate(built.lake, every["people"])
    build_aggregate(built.lake, every["second"])
    for day in days:
        build_aggregate(built.lake, every["daily"], day)


def _tables(built: LakeBuilder) -> list[IcebergTable]:
    names = ["orders_current_state", "orders_tombstones", "orders_cdc"]
    names += ["aggregates_people", "aggregates_daily", "aggregates_second"]
    found = (built.lake.iceberg.load(name) for name in names)
    return [table for table in found if table is not None]


def _texts(built: LakeBuilder) -> Iterator[tuple[str, str]]:
    """Everything that the tables' files say, manifests and metadata included."""
    for table in _tables(built):
        folder = Path(table.location())
        for path in folder.rglob("*"):
            if path.suffix == ".parquet":
                yield path.name, str(pq.read_table(io.BytesIO(path.read_bytes())).to_pylist())
            elif path.is_file():
                yield path.name, path.read_bytes().decode("latin-1")
        for snapshot in table.metadata.snapshots:
            for manifest in snapshot.manifests(table.io):
                for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False):
                    bounds = (entry.data_file.lower_bounds, entry.data_file.upper_bounds)
                    yield manifest.manifest_path, str(bounds)


def _refused(built: LakeBuilder, view: str, columns: str = "*") -> str:
    with connect_lake(built.lake) as connection, pytest.raises(duckdb.Error) as refused:
        connection.execute(f"SELECT {columns} FROM {view}").fetchall()
    return str(refused.value)


def _no_clear_value(built: LakeBuilder) -> None:
    for name, text in _texts(built):
        assert "clear-" not in text, name
        assert "77777777" not in text, name
    aggregates = ["aggregates.people", "aggregates.daily", "aggregates.second"]
    for view in [*(f"orders.{view}" for view in _VIEWS), *aggregates]:
        rows = plain_view(built.lake, f"SELECT * FROM {view}")
        assert rows
        assert "clear-" not in str(rows), view
        assert "77777777" not in str(rows), view


def test_no_clear_value_in_any_file_or_view(tmp_path: Path) -> None:
    built = LakeBuilder.at(tmp_path)
    _use(built, _RULES)
    _everything(built)
    _no_clear_value(built)
    for view in ("pitr_export", "raw_stream"):
        assert "clear-email" in str(plain_view(built.lake, f"SELECT * FROM orders.{view}"))
    row = plain_view(built.lake, "SELECT * FROM orders.current_state WHERE _rescued IS NULL")[0]
    assert "ssn" not in row
    assert (row["name"], row["total"]) == ("***", 1)
    assert json.loads(row["_item"])["email"] == {"S": row["email"]}
    changes = plain_view(built.lake, "SELECT * FROM orders.cdc WHERE data IS NOT NULL")
    assert {json.loads(c["data"])["name"] for c in changes} == {"***"}
    assert all(json.loads(c["keys"])["pk"] == json.loads(c["new_image"])["pk"] for c in changes)
    with connect_lake(built.lake) as connection, pytest.raises(duckdb.CatalogException):
        connection.execute("SELECT mask_item('{}')")


def test_the_past_is_masked_too(tmp_path: Path) -> None:
    built = LakeBuilder.at(tmp_path)
    _use(built, _RULES)
    _everything(built)
    built.read_to(START_US + 100_000_000)
    moment = datetime.fromtimestamp(START_US / 1_000_000, UTC) + timedelta(seconds=3)
    with connect_lake(built.lake, ["orders"], as_of=moment) as connection:
        for view in _VIEWS:
            rows = connection.execute(f"SELECT * FROM orders.{view}").fetchall()
            assert rows
            assert "clear-" not in str(rows)


def test_equal_values_join_across_tables_and_attributes(tmp_path: Path) -> None:
    shown = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        built = LakeBuilder.at(folder)
        attribute = ("email", "other")[number]
        _use(built, {attribute: {"hash": True}})
        built.start()
        built.stage({"a": {attribute: {"S": "same"}}, "b": {attribute: {"N": "1.0"}}})
        built.read_to(START_US + MARGIN_US)
        publish_current_state(built.table_lake)
        rows = plain_view(built.lake, f"SELECT {attribute} AS v FROM orders.current_state")
        shown.append({row["v"] for row in rows})
    assert shown[0] == shown[1]
    assert len(shown[0]) == 2


def _masked_items(built: LakeBuilder) -> dict[str, str]:
    masking = masking_of(built.lake.settings, built.table, writing=True)
    return {masking.item(key): masking.item(item) for key, item in built.items().items()}


def _check(built: LakeBuilder) -> list[dict[str, Any]]:
    rows = plain_view(built.lake, "SELECT * FROM orders.current_state ORDER BY _key")
    assert {row["_key"]: row["_item"] for row in rows} == _masked_items(built)
    assert len(rows) == len(built.items())
    return rows


_names = st.sampled_from(["a", "b", "c"])
_attributes = st.dictionaries(st.sampled_from(["email", "ssn", "name", "x"]), values, max_size=4)
_writes = st.lists(st.tuples(_names, st.none() | _attributes), min_size=1, max_size=6)


@budget(max_examples=6)
@given(st.dictionaries(_names, _attributes, max_size=3), _writes, st.integers(0, 6))
def test_the_merged_view_is_the_next_base_whatever_the_rules(
    base: dict[str, Any], writes: list[tuple[str, Any]], cut: int
) -> None:
    with temporary_lake() as built:
        _use(built, {**_RULES, "x": {"type": "decimal(20,2)"}})
        built.start()
        built.stage(base)
        built.read_to(START_US + MARGIN_US)
        publish_current_state(built.table_lake)
        _check(built)
        numbered = [change(name, n, item) for n, (name, item) in enumerate(writes, start=1)]
        for part in (numbered[cut:], numbered[:cut]):  # the later ones first
            built.land(part)
            _check(built)
            publish_current_state(built.table_lake)
            _check(built)


def _snapshots(built: LakeBuilder) -> int:
    return sum(len(table.metadata.snapshots) for table in _tables(built))


@pytest.mark.parametrize("before", [{}, {"name": {"drop": True}}, _RULES])
def test_other_rules_or_another_key_rebuild_all_that_was_published(
    before: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = LakeBuilder.at(tmp_path)
    _use(built, before)
    _everything(built)
    if before is _RULES:
        monkeypatch.setenv(_VARIABLE, _OTHER_KEY)
    _use(built, _RULES)
    for view in (*(f"orders.{v}" for v in _VIEWS), "aggregates.people", "aggregates.daily"):
        for columns in ("*", "count(*)"):
            said = _refused(built, view, columns)
            assert "other masking rules, or another masking key" in said
            assert "clear-" not in said
    assert plain_view(built.lake, "SELECT * FROM orders.pitr_export")
    result = publish_current_state(built.table_lake)
    assert (result.rebuilt, result.new_baseline) == (True, False)
    _check(built)
    build_cdc_day(built.table_lake, _YESTERDAY)
    _aggregates(built, _YESTERDAY)
    for table in _tables(built):
        assert len(table.metadata.snapshots) <= 3, "older versions are forgotten"
    _forget_files(built)
    _no_clear_value(built)
    built.land([change("clear-key-b", 1, _item("late")), change("clear-key-a", 9, None)])
    _check(built)
    assert publish_current_state(built.table_lake).rebuilt is False
    _check(built)
    _use(built, {})
    assert publish_current_state(built.table_lake).rebuilt
    assert {row["_item"] for row in _check(built)} == set(built.items().values())


def _forget_files(built: LakeBuilder) -> None:
    """What maintenance does once files are old enough."""
    for table in _tables(built):
        live = set()
        for snapshot in table.metadata.snapshots:
            live.add(snapshot.manifest_list)
            for manifest in snapshot.manifests(table.io):
                live.add(manifest.manifest_path)
                for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False):
                    live.add(entry.data_file.file_path)
        names = {Path(path).name for path in live}
        for path in Path(table.location()).rglob("*"):
            if path.suffix in (".parquet", ".avro") and path.name not in names:
                path.unlink()


def test_a_late_row_never_resurrects_an_item_when_the_key_was_rotated_midway(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between tombstones and base under a new key, and then the old key again."""
    _use(built, _RULES)
    _ready(built)
    built.land([change("clear-key-a", 5, None)])
    publish_current_state(built.table_lake)
    monkeypatch.setenv(_VARIABLE, _OTHER_KEY)

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fold, "replace_typed", crash)
        with pytest.raises(KeyboardInterrupt):
            publish_current_state(built.table_lake)
    monkeypatch.setenv(_VARIABLE, _KEY)
    built.land([change("clear-key-a", 4, _item("late"))])
    assert "other masking rules" in _refused(built, "orders.current_state")
    assert publish_current_state(built.table_lake).rebuilt
    _check(built)
    built.land([change("clear-key-a", 3, _item("later"))])
    _check(built)
    publish_current_state(built.table_lake)
    _check(built)


@pytest.mark.parametrize(("key", "said"), [(None, "is not set"), ("short", "shorter than 32")])
def test_without_a_key_nothing_is_published(
    key: str | None, said: str, built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(built, _RULES)
    _ready(built)
    built.land(_CHANGES)
    monkeypatch.delenv(_VARIABLE)
    if key:
        monkeypatch.setenv(_VARIABLE, key)
    for publish in (
        lambda: publish_current_state(built.table_lake),
        lambda: build_cdc_day(built.table_lake, _TODAY),
    ):
        with pytest.raises(SettingsError) as refused:
            publish()
        assert said in refused.value.message
        assert _VARIABLE in refused.value.message
        assert f"set {_VARIABLE}" in (refused.value.fix or "")
        assert "'short'" not in str(refused.value)
    assert _tables(built) == []


def test_a_reader_without_the_key_reads_what_is_published(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(built, _RULES)
    _everything(built)
    monkeypatch.delenv(_VARIABLE)
    for view in ("orders.cdc", "orders.history", "aggregates.people", "aggregates.daily"):
        assert plain_view(built.lake, f"SELECT * FROM {view}")
    assert f"variable {_VARIABLE}" in _refused(built, "orders.current_state", "count(*)")


@pytest.mark.parametrize("rule", [{"drop": True}, {"mask": "x"}])
def test_key_attributes_can_be_hashed_only(rule: dict[str, Any], built: LakeBuilder) -> None:
    _use(built, {"pk": rule})
    _ready(built)
    built.land(_CHANGES)
    for publish in (
        lambda: publish_current_state(built.table_lake),
        lambda: build_cdc_day(built.table_lake, _TODAY),
    ):
        with pytest.raises(SettingsError, match=r"table orders: attribute 'pk' is part of the key"):
            publish()
    assert _tables(built) == []


@pytest.mark.parametrize("view", ["raw_stream", "pitr_export"])
def test_an_aggregate_cannot_read_around_the_rules(view: str, built: LakeBuilder) -> None:
    _use(built, _RULES)
    _ready(built)
    folder = built.lake.settings.aggregates_folder
    folder.mkdir()
    (folder / "leak.sql").write_text(f"SELECT * FROM orders.{view}")
    (leak,) = load_aggregates(folder)
    with pytest.raises(QueryError, match=rf"aggregate leak: orders\.{view} has the exact values"):
        build_aggregate(built.lake, leak)
    _use(built, {"total": {"type": "int64"}})
    build_aggregate(built.lake, leak)


def test_rules_that_no_item_needed_yet_are_told(built: LakeBuilder) -> None:
    rules = {**_RULES, "total": {"type": "int64"}, "x": {"type": "string"}}
    _use(built, rules)
    _ready(built)
    assert publish_current_state(built.table_lake).unseen_rules == ["never", "x"]
    assert publish_current_state(built.table_lake).unseen_rules == ["never", "x"]
    built.land([change("a", 1, {"never": {"S": "now"}})])
    assert publish_current_state(built.table_lake).unseen_rules == ["x"]


def test_days_of_cdc_that_are_stale_are_rebuilt_with_the_first_one_asked_for(
    built: LakeBuilder,
) -> None:
    tomorrow = _TODAY + timedelta(days=1)
    far = int((datetime(*tomorrow.timetuple()[:3], tzinfo=UTC).timestamp() * 1e6 - START_US) / 1e6)
    _ready(built)
    built.land([change("clear-key-a", 1, _item("1")), change("clear-key-a", far + 1, _item("2"))])
    for day in (_TODAY, tomorrow):
        build_cdc_day(built.table_lake, day)
    _use(built, _RULES)
    build_cdc_day(built.table_lake, date(2020, 1, 1))
    rows = plain_view(built.lake, "SELECT * FROM orders.cdc")
    assert {row["day"] for row in rows} == {_TODAY, tomorrow}
    assert "clear-" not in str(rows)


def test_masking_is_off_without_rules(built: LakeBuilder) -> None:
    assert not masking_of(built.lake.settings, built.table, writing=True)
    assert Masking(dropped=frozenset({"a"}))


def test_other_rules_are_worth_a_fold(built: LakeBuilder) -> None:
    _ready(built)
    publish_current_state(built.table_lake)
    assert not is_publication_due(built.table_lake)
    for rules in ({"total": {"type": "string"}}, _RULES):
        _use(built, rules)
        assert is_publication_due(built.table_lake)
        publish_current_state(built.table_lake)
        assert not is_publication_due(built.table_lake)
