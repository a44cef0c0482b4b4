"""current_state on a local lake: at every step the view is what `core.changes.fold` says."""

import base64
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.core.errors import LakeError, NotReadyError, QueryError
from cdc_pipeline.core.items.attributes import plain_value
from cdc_pipeline.core.items.columns import SYSTEM_COLUMNS
from cdc_pipeline.core.items.view_names import VIEW_COLUMNS
from cdc_pipeline.core.log.entries import Gap
from cdc_pipeline.lake.engine.item_table import max_order_key
from cdc_pipeline.lake.iceberg import writer
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline.lake.iceberg.tables import CommitConflictError
from cdc_pipeline.lake.publish.current_state import (
    PublishResult,
    is_publication_due,
    publish_current_state,
)
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.query import run_query
from cdc_pipeline.lake.state import fold
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    plain_view,
    temporary_lake,
)
from cdc_pipeline_tests.strategies import numbers, values

_VIEW = "SELECT * FROM orders.current_state"
_SYSTEM = {*SYSTEM_COLUMNS, *VIEW_COLUMNS}


def _cell(tag: str, content: Any, cell: Any) -> bool:
    """Whether a typed cell shows a canonical value exactly."""
    if tag in ("NS", "BS", "SS"):
        members = zip(content, cell, strict=True)
        return all(_cell(tag[0], one, shown) for one, shown in members)
    if tag == "N" and not isinstance(cell, str):
        return not isinstance(cell, float | bool) and Decimal(cell) == Decimal(content)
    if tag == "B":
        return cell == base64.b64decode(content)
    if tag in ("M", "L"):
        return cell == plain_value({tag: content})
    return type(cell) is type(content) and cell == content


def _check(built: LakeBuilder) -> None:
    """The view has exactly the expected items, and shows every value of them exactly."""
    rows = plain_view(built.lake, _VIEW)
    assert {row["_key"]: row["_item"] for row in rows} == built.items()
    assert len(rows) == len(built.items())
    for row in rows:
        assert row["_order_key"] == built.expected[row["_key"]].order_key
        rescued = json.loads(row["_rescued"] or "{}")
        item = json.loads(row["_item"])
        for attribute, value in item.items():
            ((tag, content),) = value.items()
            if tag == "NULL":
                assert row[attribute] is None
            elif attribute in rescued:
                assert rescued.pop(attribute) == value
                assert row[attribute] is None
            else:
                assert _cell(tag, content, row[attribute]), (attribute, value, row[attribute])
        assert rescued == {}
        assert all(row[name] is None for name in set(row) - set(item) - _SYSTEM)


def _ready(built: LakeBuilder, items: dict[str, dict[str, Any]]) -> None:
    built.start()
    built.stage(items)
    built.read_to(START_US + MARGIN_US)


def _publish(built: LakeBuilder) -> PublishResult:
    return publish_current_state(built.table_lake)


_N, _S = {"N": "1"}, {"S": "x"}


def test_what_is_missing_is_named_before_the_first_publication(built: LakeBuilder) -> None:
    with pytest.raises(NotReadyError, match="there is no export of table orders yet") as refused:
        _publish(built)
    assert refused.value.fix == "materialise orders/pitr_export first"
    built.start()
    with pytest.raises(NotReadyError, match="there is no export"):
        _publish(built)
    built.stage({"a": {"n": _N}})
    built.read_to(START_US + MARGIN_US - 1)
    with pytest.raises(NotReadyError, match=r"they have landed up to \d{4}-\d\d-\d\d") as error:
        _publish(built)
    assert "capture" in (error.value.fix or "")
    with connect_lake(built.lake) as connection, pytest.raises(QueryError, match="current_state"):
        run_query(connection, _VIEW)
    assert len(plain_view(built.lake, "SELECT * FROM orders.pitr_export")) == 1
    built.read_to(START_US + MARGIN_US)
    assert _publish(built).new_baseline
    _check(built)


def test_a_published_state_says_what_it_is(built: LakeBuilder) -> None:
    _ready(built, {"a": {"n": _N}, "b": {}})
    built.land([change("a", 1, {"n": {"N": "2"}}), change("c", 2, {}), change("b", 3, None)])
    result = _publish(built)
    assert (result.items, result.changes_folded, result.generation) == (2, 3, 1)
    assert result.watermark == built.state.n
    assert result.watermark_us == START_US + MARGIN_US
    assert table_property(result.table, "watermark") == str(built.state.n)
    assert table_property(result.table, "items") == "2"
    _check(built)


def test_publishing_twice_changes_nothing(built: LakeBuilder) -> None:
    _ready(built, {"a": {"n": _N}})
    built.land([change("a", 1, None), change("b", 2, {"n": _N})])
    first = _publish(built)
    again = _publish(built)
    assert (again.items, again.columns, again.changes_folded) == (first.items, first.columns, 0)
    assert data_files(again.table) == data_files(first.table)
    assert not again.new_baseline
    _check(built)


def test_an_empty_table_is_a_state_too(built: LakeBuilder) -> None:
    _ready(built, {})
    assert _publish(built).items == 0
    _check(built)
    built.land([change("a", 1, {"n": _N})])
    _check(built)
    assert _publish(built).items == 1
    built.land([change("a", 2, None)])
    _check(built)
    assert _publish(built).items == 0
    _check(built)


@dataclass(frozen=True)
class _Step:
    """What lands in one log entry, by number of the change, and whether a state follows."""

    changes: list[int]
    publish: bool


_names = st.sampled_from(["a", "b", "日本"])
_attributes = st.dictionaries(
    st.sampled_from("nstx"), values | numbers.map(lambda v: {"N": v}), max_size=4
)
_writes = st.lists(st.tuples(_names, st.none() | _attributes), min_size=1, max_size=8)
_stories = _writes.flatmap(
    lambda writes: st.tuples(
        st.just(writes),
        st.lists(
            st.builds(_Step, st.lists(st.integers(0, len(writes) - 1), max_size=5), st.booleans()),
            min_size=1,
            max_size=3,
        ),
    )
)


def _story(
    base: dict[str, dict[str, Any]],
    story: tuple[list[tuple[str, dict[str, Any] | None]], list[_Step]],
) -> None:
    writes, steps = story
    with temporary_lake() as built:
        _ready(built, base)
        _publish(built)
        for step in steps:
            built.land(change(writes[n][0], n + 1, writes[n][1]) for n in step.changes)
            _check(built)
            if step.publish:
                _publish(built)
                _check(built)


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)


@budget(max_examples=8)
@given(st.dictionaries(_names, _attributes, max_size=3), _stories)
def test_any_story_ends_where_the_reference_fold_says(
    base: dict[str, dict[str, Any]],
    story: tuple[list[tuple[str, dict[str, Any] | None]], list[_Step]],
) -> None:
    """Late rows, repeats, deletes and re-inserts, widening and conflicting types."""
    _story(base, story)


_WIDTHS = ["0", "-5", "1.5", "0.5", "-0." + "5" * 18, "9" * 19, "0." + "1" * 38, "1E-100", "1E+37"]


@pytest.mark.parametrize("as_set", [False, True])
def test_numbers_stay_exact_while_the_delta_widens_their_column(
    as_set: bool, built: LakeBuilder
) -> None:
    def kind(number: str) -> dict[str, Any]:
        return {"n": {"NS": [number]} if as_set else {"N": number}}

    _ready(built, {"base": kind("7")})
    _publish(built)
    for number, width in enumerate(_WIDTHS, start=1):
        built.land([change(f"k{number}", number, kind(width))])
        _check(built)
        if number % 3 == 0:
            _publish(built)
            _check(built)


@pytest.mark.parametrize("before", ["0.5", "-0.5", "0", "0." + "1" * 18, "0." + "1" * 38])
@pytest.mark.parametrize("scale", [18, 38])
def test_fractions_keep_their_spelling_when_their_column_becomes_text(
    before: str, scale: int, built: LakeBuilder
) -> None:
    """DuckDB writes a decimal that is all scale without the zero before its point."""
    _ready(built, {"a": {"n": {"N": before}}, "b": {"n": {"N": f"1E-{scale}"}}})
    _publish(built)
    built.land([change("c", 1, {"n": {"N": "1E-100"}})])
    _check(built)


def test_a_value_of_another_type_is_rescued_until_the_old_type_has_none(
    built: LakeBuilder,
) -> None:
    _ready(built, {"a": {"n": _N}})
    _publish(built)
    built.land([change(name, n, {"n": _S}) for n, name in enumerate(["b", "c", "d"], start=1)])
    rows = {row["_key"]: row for row in plain_view(built.lake, _VIEW)}
    assert [row["n"] for row in rows.values() if row["_rescued"]] == [None] * 3
    _check(built)
    _publish(built)
    _check(built)
    rows = {row["_key"]: row for row in plain_view(built.lake, _VIEW)}
    assert [row["n"] for row in rows.values() if row["_rescued"]] == [None] * 3
    built.land([change("a", 9, {})])
    _publish(built)
    _check(built)
    rows = {row["_key"]: row for row in plain_view(built.lake, _VIEW)}
    assert sorted(str(row["n"]) for row in rows.values()) == ["None", "x", "x", "x"]


def test_a_late_row_never_resurrects_an_item(built: LakeBuilder) -> None:
    _ready(built, {"a": {"n": _N}})
    built.land([change("a", 5, None)])
    _publish(built)
    built.land([change("a", 4, {"n": {"N": "4"}}), change("z", 1, {})])
    _check(built)
    assert '{"pk":{"S":"a"}}' not in built.items()
    _publish(built)
    _publish(built)
    _check(built)
    built.land([change("a", 6, {"n": {"N": "6"}})])
    _check(built)
    _publish(built)
    built.land([change("a", 3, None)])
    _check(built)
    _publish(built)
    built.land([change("a", 2, {"n": {"N": "2"}})])
    _check(built)
    _publish(built)
    _check(built)


def test_an_event_without_its_image_says_nothing_of_the_item(built: LakeBuilder) -> None:
    """Until the read behind it has landed, what is known of the item stays."""
    _ready(built, {"a": {"n": _N}, "b": {"n": _N}})
    _publish(built)
    built.land([change("a", 1, {"n": {"N": "2"}}), change("b", 2, None)])
    known = dict(built.expected)
    bare = [change(name, 3, {})._replace(data=None, new_image=None) for name in "abc"]
    built.land([*bare, change("d", 4, {})])
    built.expected = known | {k: r for k, r in built.expected.items() if '"d"' in k}
    _check(built)
    _publish(built)
    _check(built)


def _greatest(built: LakeBuilder) -> str | None:
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    return max_order_key(table)


def _looks_for_later_rows(built: LakeBuilder) -> bool:
    """Whether the view compares the base's rows with the changes by their place."""
    with connect_lake(built.lake) as connection:
        views = "SELECT sql FROM duckdb_views() WHERE view_name = 'current_state'"
        ((sql,),) = connection.execute(views).fetchall()
    return "_order_key >=" in sql


@pytest.mark.parametrize("is_known", [True, False])
def test_a_base_says_how_late_its_rows_are(is_known: bool, built: LakeBuilder) -> None:
    """Changes that are all later need no look at each row's place; others do, or an old base."""
    _ready(built, {name: {"n": _N} for name in "abc"})
    for numbers_, is_late in (([5, 9], False), ([7, 12], True), ([13], False), ([11, 14], True)):
        _publish(built)
        assert _greatest(built) == max(row.order_key for row in built.expected.values())
        if not is_known:
            table = built.lake.iceberg.load("orders_current_state")
            assert table is not None
            with table.transaction() as transaction:
                transaction.remove_properties("cdc_pipeline.max_order_key")
            assert _greatest(built) is None
        built.land([change("ab"[n % 2], n, {"n": {"N": str(n)}}) for n in numbers_])
        _check(built)
        assert _looks_for_later_rows(built) == (is_late or not is_known)


def test_rows_of_many_files_are_told_apart(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base of a file per item; changes of two generations, in two files each."""
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 1)
    monkeypatch.setattr(writer, "_FILE_BYTES", 1)
    _ready(built, {name: {"n": _N} for name in "abcdef"})
    assert _publish(built).items == 6
    table = built.lake.iceberg.load("orders_current_state")
    assert table is not None
    assert len(data_files(table)) == 6
    for generation in (1, 2):
        for first, names in ((1, "abx"), (4, "cy")):
            number = first + 10 * generation
            rows = [change(name, number + n, {"n": _S}) for n, name in enumerate(names)]
            built.land([*rows, change("a", number + 9, None)], generation=generation)
    _check(built)
    assert _publish(built).items == 7
    _check(built)


def test_a_base_without_rows_is_older_than_any_change(built: LakeBuilder) -> None:
    _ready(built, {})
    _publish(built)
    assert _greatest(built) == ""
    built.land([change("a", 1, {"n": _N})])
    _check(built)
    assert not _looks_for_later_rows(built)


def test_hostile_attribute_names_have_columns_of_their_own(built: LakeBuilder) -> None:
    item = {name: {"S": name} for name in ("Id", "id", "", "a.b", "`", '"', "日本", "_key", "$n")}
    _ready(built, {"a": item})
    _publish(built)
    built.land([change("b", 1, {**item, "ID": {"S": "ID"}, "item_key": {"S": "item_key"}})])
    for row in plain_view(built.lake, _VIEW):
        shown = {value for name, value in row.items() if name not in _SYSTEM and value is not None}
        assert shown == {next(iter(v.values())) for v in json.loads(row["_item"]).values()}


def test_a_new_baseline_takes_over_with_its_generation(built: LakeBuilder) -> None:
    _ready(built, {"old": {"n": _N}, "both": {"n": _N}})
    built.land([change("old", 1, {"n": {"N": "2"}}), change("gone", 2, {})])
    _publish(built)
    built.land([change("new", 3, {"n": {"N": "3"}})], generation=2)
    built.stage({"both": {"n": {"S": "now text"}}, "old": {}}, generation=2)
    built.land([change("both", 1, {"n": {"N": "9"}})], generation=1)
    result = _publish(built)
    assert (result.new_baseline, result.generation) == (True, 2)
    _check(built)
    assert _publish(built).new_baseline is False
    built.land([change("old", 9, None)], generation=2)
    _check(built)


def test_a_newer_baseline_waits_for_its_changes(built: LakeBuilder) -> None:
    _ready(built, {"a": {}})
    _publish(built)
    before = dict(built.expected)
    built.read_to(START_US)
    built.stage({"b": {}}, generation=2)
    built.expected = before
    assert _publish(built).generation == 1
    _check(built)


def test_a_state_does_not_go_beyond_an_open_gap(built: LakeBuilder) -> None:
    _ready(built, {"a": {"n": _N}})
    built.land([change("a", 1, {"n": {"N": "2"}})])
    before = dict(built.expected)
    gap = Gap("trimmed", ("shard-1",), START_US, START_US + 1, heal_generation=2)
    built.append(gap=gap)
    at_gap = built.state.n
    built.read_to(START_US + MARGIN_US)
    built.land([change("a", 9, {"n": {"N": "9"}})], generation=3)
    built.expected = before
    with pytest.raises(NotReadyError):  # the handover lies behind the gap
        _publish(built)
    assert at_gap == built.state.horizon(1)


def test_behind_a_gap_the_published_state_stays(built: LakeBuilder) -> None:
    _ready(built, {"a": {"n": _N}})
    _publish(built)
    built.land([change("a", 1, {"n": {"N": "2"}})])
    before = dict(built.expected)
    end = START_US + 2 * MARGIN_US
    built.append(gap=Gap("trimmed", ("shard-1",), end, end + 1, heal_generation=2))
    horizon = built.state.n
    built.land([change("a", 9, {"n": {"N": "9"}})], generation=3)
    built.expected = before
    _check(built)
    result = _publish(built)
    assert (result.watermark, result.open_gaps) == (horizon, 1)
    _check(built)


def test_a_crash_between_tombstones_and_base_is_made_good(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ready(built, {"a": {"n": _N}, "b": {"n": _N}})
    _publish(built)
    built.land([change("a", 5, None), change("b", 6, {"n": {"N": "6"}})])

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fold, "description_text", crash)
        with pytest.raises(KeyboardInterrupt):
            _publish(built)
    _check(built)
    built.land([change("a", 4, {"n": {"N": "4"}})])
    _check(built)
    _publish(built)
    _check(built)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("before", ["create_winners", "replace_tombstones", "description_text"])
def test_the_loser_of_a_race_leaves_the_winners_state(
    before: str, first: bool, built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another publisher commits a later state behind this one's reads or between its commits."""
    _ready(built, {"a": {"n": _N}})
    if not first:
        _publish(built)
    built.land([change("a", 1, {"n": {"N": "2"}})])
    step = getattr(fold, before)

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(fold, before, step)
        built.land([change("a", 5, None)])
        _publish(built)
        return step(*args, **kwargs)

    monkeypatch.setattr(fold, before, overtaken)
    with pytest.raises(CommitConflictError):
        _publish(built)
    winner = built.lake.iceberg.load("orders_current_state")
    assert winner is not None
    assert table_property(winner, "watermark") == str(built.state.n)
    built.land([change("a", 4, {"n": {"N": "4"}})])
    _check(built)
    _publish(built)
    _check(built)


def test_an_unwritable_lake_is_a_lake_error(built: LakeBuilder) -> None:
    built.lake.settings.lake_folder.write_text("a file where the lake should be")
    with pytest.raises(LakeError):
        _publish(built)


def test_a_fold_nobody_asked_for_waits_until_it_pays() -> None:
    with temporary_lake(current_state={"fold_percent": 10, "publish_minutes": 15}) as built:
        assert is_publication_due(built.table_lake)  # nothing is published yet
        _ready(built, {f"k{n}": {} for n in range(20)})
        _publish(built)
        assert not is_publication_due(built.table_lake)
        built.land([change("k1", 1, {"n": {"N": "1"}})])
        assert not is_publication_due(built.table_lake)
        built.land([change("k2", 2, {"n": {"N": "1"}})])
        assert is_publication_due(built.table_lake)  # 2 of 20
        _publish(built)
        assert not is_publication_due(built.table_lake)
        patient = built.lake.settings.current_state
        old = patient.model_copy(update={"publish_minutes": 0})
        built.lake.settings = built.lake.settings.model_copy(update={"current_state": old})
        assert is_publication_due(built.table_lake)
        built.lake.settings = built.lake.settings.model_copy(update={"current_state": patient})
        built.start(generation=2)
        built.stage({"k1": {}}, generation=2)
        assert is_publication_due(built.table_lake)  # a new baseline waits
