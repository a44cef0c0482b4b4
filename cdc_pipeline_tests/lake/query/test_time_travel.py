"""Time travel: at every second the state is what the reference fold says it was then."""

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import duckdb
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from cdc_pipeline.cli import main
from cdc_pipeline.core.changes.fold import KeyedChange, Row, fold, items
from cdc_pipeline.core.changes.order import order_key, position
from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import QueryError
from cdc_pipeline.core.items.columns import SYSTEM_COLUMNS
from cdc_pipeline.core.items.view_names import VIEW_COLUMNS
from cdc_pipeline.core.log.entries import Gap, Heal, HealWindow, StreamRef
from cdc_pipeline.lake.engine.duckdb_session import arrow_table
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.query import connect_for
from cdc_pipeline.lake.query.time_travel import parse_moment
from cdc_pipeline.lake.storage.compaction import compact_landing
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    plain_view,
    temporary_lake,
)

_STATE = "SELECT _key, _item FROM orders.current_state"
MARGIN = MARGIN_US // 1_000_000


def _at(second: float) -> datetime:
    return datetime.fromtimestamp(START_US / 1_000_000 + second, UTC)


def _past(built: LakeBuilder, second: float) -> dict[str, str]:
    with connect_for(built.lake, _STATE, _at(second)) as connection:
        return dict(connection.execute(_STATE).fetchall())


def _expected(built: LakeBuilder, base: dict[str, Row], second: float) -> dict[str, str]:
    until = START_US + second * 1_000_000
    seen = (
        KeyedChange(c.keys, order_key(generation, c.position), c.new_image)
        for generation, c in built.changes
        if c.write_time_us <= until
    )
    return items(fold(base, seen))


@pytest.fixture
def built() -> Iterator[LakeBuilder]:
    with temporary_lake() as lake:
        lake.start()
        lake.stage({"a": {"n": {"N": "0"}}, "b": {"n": {"N": "0"}}})
        yield lake


_VALUES = st.one_of(
    st.none(), st.integers(0, 9).map(lambda n: {"n": {"N": str(n)}}), st.just({"s": {"S": "x"}})
)
_WRITES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), _VALUES), max_size=12)


@budget(max_examples=15, deadline=None)
@given(_WRITES, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_any_second_of_any_history(
    writes: list, published: bool, compacted: bool, chance: random.Random
) -> None:
    with temporary_lake() as built:
        built.start()
        built.stage({"a": {"n": {"N": "0"}}, "b": {"n": {"N": "0"}}})
        base = dict(built.expected)
        second = 0
        for name, pause, value in writes:
            second += pause
            built.land([change(name, second, value)])
        built.read_to(START_US + (second + 10) * 1_000_000)
        if published:
            publish_current_state(built.table_lake)
        if compacted:
            compact_landing(built.table_lake.log, 0)
        for asked in {MARGIN, second + 5, *chance.sample(range(MARGIN, second + 6), 2)}:
            assert _past(built, asked) == _expected(built, base, asked)


def test_a_state_is_that_of_the_nearest_baseline(built: LakeBuilder) -> None:
    for second in (5, 15, 25):
        built.land([change("a", second, {"n": {"N": str(second)}})])
    built.read_to(START_US + 40_000_000)
    publish_current_state(built.table_lake)
    old = dict(built.expected)
    stream = built.state.stream
    assert stream is not None
    built.append(stream=replace(stream, generation=2))
    # An item that only this baseline has shows which one was taken.
    second_baseline = built.stage({"z": {"n": {"N": "1"}}}, generation=2)
    built.append(baseline=replace(second_baseline, export_time_us=START_US + 50_000_000))
    built.land([change("z", 60, {"n": {"N": "2"}})], generation=2)
    built.read_to(START_US + 90_000_000)
    publish_current_state(built.table_lake)
    assert _past(built, 30) == items(old)
    assert set(_past(built, 50 + MARGIN - 1)) == {*items(old)}
    assert _past(built, 50 + MARGIN).keys() == built.items().keys()
    assert _past(built, 61) == built.items()


def test_the_other_views_are_of_then_too(built: LakeBuilder) -> None:
    for second in (5, 15, 25):
        built.land([change("a", second, {"n": {"N": str(second)}})])
    build_cdc_day(built.table_lake, day_of(START_US))
    built.read_to(START_US + 40_000_000)
    with connect_lake(built.lake, as_of=_at(15)) as connection:
        for view in ("raw_stream", "cdc"):
            assert connection.execute(f"SELECT count(*) FROM orders.{view}").fetchall() == [(2,)]
        current = "SELECT item FROM orders.history WHERE is_current"
        assert "15" in str(connection.execute(current).fetchall())
        assert connection.execute("SELECT count(*) FROM orders.pitr_export").fetchall() == [(2,)]
        with pytest.raises(duckdb.CatalogException):
            connection.execute("SELECT * FROM aggregates.anything")


def test_before_the_first_baseline_there_is_nothing_to_tell(built: LakeBuilder) -> None:
    built.read_to(START_US + 40_000_000)
    with pytest.raises(QueryError, match=r"no baseline as old as .*; the first one is of .*Z"):
        _past(built, -1)


def test_what_has_not_landed_yet_is_refused(built: LakeBuilder) -> None:
    built.read_to(START_US + 10_000_000)
    assert _past(built, 9) == built.items()
    with pytest.raises(QueryError, match=r"is complete up to .* only"):
        _past(built, 10)


def test_behind_an_open_gap_it_is_refused_and_the_gap_is_named(built: LakeBuilder) -> None:
    built.land([change("a", 5, {"n": {"N": "5"}})])
    gap = Gap(
        "trimmed", ("shard-1",), START_US + 10_000_000, START_US + 20_000_000, heal_generation=2
    )
    stream = built.state.stream
    assert stream is not None
    built.append(gap=gap, stream=replace(stream, generation=3))
    built.land([change("a", 30, {"n": {"N": "30"}})], generation=3)
    built.read_to(START_US + 60_000_000)
    assert "5" in str(_past(built, 9))
    with pytest.raises(QueryError, match=r"a gap is open since .* \(trimmed\)"):
        _past(built, 40)


_HEALED = (START_US + 10_000_000, START_US + 20_000_000)
_WINDOWS = (HealWindow(_HEALED[0], START_US + 30_000_000, done=True),)


def _heal(built: LakeBuilder) -> None:
    """`a` was changed in the gap (to 1), and (to 2) behind it in the window of its heal."""
    gap = Gap("trimmed", ("shard-1",), *_HEALED, heal_generation=2)
    stream = built.state.stream
    assert stream is not None
    built.append(gap=gap, stream=replace(stream, generation=3))
    number = built.state.n
    line = change("a", 25, {"n": {"N": "2"}})._replace(transport="export", event_id="")
    built.land([line], generation=2)
    built.append(heal=Heal(number, _WINDOWS, reread=0, healed=True))
    built.land([change("a", 25, {"n": {"N": "2"}})], generation=3)
    built.read_to(START_US + 90_000_000)


@pytest.mark.parametrize("second", [10, 20, 22, 24, 29])
def test_up_to_the_end_of_a_heal_it_says_from_when_on_it_is_exact(
    built: LakeBuilder, second: int
) -> None:
    _heal(built)
    exact = f"{_at(30):%Y-%m-%dT%H:%M:%SZ}"
    with pytest.warns(UserWarning, match=rf"healed(.|\n)*exact from {exact} on"):
        _past(built, second)


@pytest.mark.parametrize(("second", "number"), [(9, "0"), (30, "2")])
def test_around_a_heal_it_is_exact(built: LakeBuilder, second: int, number: str) -> None:
    _heal(built)
    assert f'"n":{{"N":"{number}"}}' in _past(built, second)['{"pk":{"S":"a"}}']


@pytest.mark.parametrize("transport", ["kinesis", "firehose", "export", "read"])
def test_the_end_of_a_second_has_what_was_written_within_it(
    built: LakeBuilder, transport: str
) -> None:
    """Only DynamoDB Streams rounds times down to seconds."""
    for number, micros in ((5, 999_999), (6, 0)):
        made = change("a", number, {"n": {"N": str(number)}})
        time_us = made.write_time_us + micros
        place = position(0, time_us)
        built.land([made._replace(write_time_us=time_us, position=place, transport=transport)])
    built.read_to(START_US + 40_000_000)
    build_cdc_day(built.table_lake, day_of(START_US))
    assert '"N":"5"' in _past(built, 5)['{"pk":{"S":"a"}}']
    assert '"N":"6"' in _past(built, 6)['{"pk":{"S":"a"}}']
    with connect_lake(built.lake, as_of=_at(5)) as connection:
        for view in ("raw_stream", "cdc"):
            assert connection.execute(f"SELECT count(*) FROM orders.{view}").fetchall() == [(1,)]


def _cells(built: LakeBuilder, view: str, second: float | None = None) -> dict[str, str]:
    """What is in each column of attributes, by column, of all items."""
    sql = f"SELECT * FROM orders.{view}"
    with connect_for(built.lake, sql, None if second is None else _at(second)) as connection:
        rows = arrow_table(connection, sql).to_pylist()
    known = {*SYSTEM_COLUMNS, *VIEW_COLUMNS, "pk"}
    return {n: v for row in rows for n, v in row.items() if n not in known and v is not None}


@pytest.mark.parametrize("published", [False, True])
def test_attributes_are_in_the_same_columns_now_and_then(published: bool) -> None:
    """`ID` is in the export, `id` comes by the stream: neither takes the other one's column."""
    with temporary_lake() as built:
        built.start()
        built.stage({"a": {"ID": {"S": "upper"}}})
        built.read_to(START_US + 4_000_000)
        if published:
            publish_current_state(built.table_lake)
        built.land([change("b", 5, {"id": {"S": "lower"}})])
        built.read_to(START_US + 40_000_000)
        merged = _cells(built, "current_state") if published else None
        publish_current_state(built.table_lake)
        now = _cells(built, "current_state")
        assert sorted(now.values()) == ["lower", "upper"]
        assert merged in (None, now)
        assert _cells(built, "current_state", 10) == now
        for second in (None, 10):
            exported = _cells(built, "pitr_export", second)
            assert exported == {n: v for n, v in now.items() if v == "upper"}
        built.append(stream=_generation(built, 2))
        built.stage({"c": {"id": {"S": "lower"}}}, generation=2)
        publish_current_state(built.table_lake)
        lower = {n: v for n, v in now.items() if v == "lower"}
        for view in ("current_state", "pitr_export"):
            assert _cells(built, view) == lower


def test_names_that_an_older_version_swapped_are_those_of_the_published_state() -> None:
    with temporary_lake() as built:
        built.start()
        built.stage({"a": {"ID": {"S": "upper"}}})
        built.land([change("b", 5, {"id": {"S": "lower"}})])
        built.read_to(START_US + 40_000_000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cdc_pipeline.lake.state.columns.column_names", lambda *_: {})
            publish_current_state(built.table_lake)
        now = _cells(built, "current_state")
        assert now["id"] == "lower"
        upper = {n: v for n, v in now.items() if v == "upper"}
        assert _cells(built, "pitr_export") == _cells(built, "pitr_export", 10) == upper
        assert _cells(built, "current_state", 10) == now
        built.land([change("a", 41, None)])
        built.read_to(START_US + 60_000_000)
        publish_current_state(built.table_lake)
        assert _cells(built, "current_state") == {"id": "lower"}
        assert _cells(built, "pitr_export") == upper


def _generation(built: LakeBuilder, number: int) -> StreamRef:
    assert built.state.stream is not None
    return replace(built.state.stream, generation=number)


def test_close_to_the_first_export_there_is_a_warning(built: LakeBuilder) -> None:
    built.read_to(START_US + 40_000_000)
    with pytest.warns(UserWarning, match="exact to about a minute"):
        _past(built, MARGIN - 1)


def test_aggregates_have_no_past(built: LakeBuilder) -> None:
    with pytest.raises(QueryError, match="aggregates are kept as they are now"):
        connect_for(built.lake, "SELECT * FROM aggregates.sales", _at(5))


@pytest.mark.parametrize(
    "text", ["2026-11-20T12:00Z", "2026-11-20 12:00", "2026-11-20T13:00+01:00"]
)
def test_times_are_utc_unless_they_say_otherwise(text: str) -> None:
    assert parse_moment(text) == datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert parse_moment(parse_moment(text).replace(tzinfo=None)).tzinfo is not None


def test_what_is_no_time_is_said(built: LakeBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc_pipeline.commands.query.open_lake", lambda: built.lake)
    found = CliRunner().invoke(main, ["query", "SELECT 1", "--as-of", "yesterday"])
    assert found.exit_code == 1
    assert "'yesterday' is not a time" in found.output


def test_the_command_line_shows_the_past_and_its_warning(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_pipeline.commands.query.open_lake", lambda: built.lake)
    built.land([change("a", 5, {"n": {"N": "5"}})])
    built.read_to(START_US + 40_000_000)
    sql = "SELECT n FROM orders.current_state ORDER BY _key"
    for second, first in ((1, 0), (4, 0), (6, 5)):
        moment = (_at(0) + timedelta(seconds=second)).isoformat()
        run = CliRunner().invoke(main, ["query", sql, "--as-of", moment, "--format", "csv"])
        assert run.exit_code == 0, run.output
        assert run.stdout.split() == ["n", str(first), "0"]
        assert ("Warning: orders:" in run.stderr) == (second < MARGIN)
    assert plain_view(built.lake, "SELECT 1 AS one") == [{"one": 1}]
