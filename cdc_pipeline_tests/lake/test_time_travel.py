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
from cdc_pipeline.core.errors import QueryError
from cdc_pipeline.core.fold import KeyedChange, Row, fold, items
from cdc_pipeline.core.log_parts import Gap
from cdc_pipeline.core.order import order_key
from cdc_pipeline.lake.compaction import compact_landing
from cdc_pipeline.lake.connection import connect_lake
from cdc_pipeline.lake.current_state import publish_current_state
from cdc_pipeline.lake.query import connect_for
from cdc_pipeline.lake.time_travel import parse_moment
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
            publish_current_state(built.lake, built.table)
        if compacted:
            compact_landing(built.lake.log(built.table), 0)
        for asked in {MARGIN, second + 5, *chance.sample(range(MARGIN, second + 6), 2)}:
            assert _past(built, asked) == _expected(built, base, asked)


def test_a_state_is_that_of_the_nearest_baseline(built: LakeBuilder) -> None:
    for second in (5, 15, 25):
        built.land([change("a", second, {"n": {"N": str(second)}})])
    built.read_to(START_US + 40_000_000)
    publish_current_state(built.lake, built.table)
    old = dict(built.expected)
    stream = built.state.stream
    assert stream is not None
    built.append(stream=replace(stream, generation=2))
    # An item that only this baseline has shows which one was taken.
    second_baseline = built.stage({"z": {"n": {"N": "1"}}}, generation=2)
    built.append(baseline=replace(second_baseline, export_time_us=START_US + 50_000_000))
    built.land([change("z", 60, {"n": {"N": "2"}})], generation=2)
    built.read_to(START_US + 90_000_000)
    publish_current_state(built.lake, built.table)
    assert _past(built, 30) == items(old)
    assert set(_past(built, 50 + MARGIN - 1)) == {*items(old)}
    assert _past(built, 50 + MARGIN).keys() == built.items().keys()
    assert _past(built, 61) == built.items()


def test_the_other_views_are_of_then_too(built: LakeBuilder) -> None:
    from cdc_pipeline.core.names import day_of
    from cdc_pipeline.lake.cdc import build_cdc_day

    for second in (5, 15, 25):
        built.land([change("a", second, {"n": {"N": str(second)}})])
    build_cdc_day(built.lake, built.table, day_of(START_US))
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
    monkeypatch.setattr("cdc_pipeline.cli._lake", lambda: built.lake)
    found = CliRunner().invoke(main, ["query", "SELECT 1", "--as-of", "yesterday"])
    assert found.exit_code == 1
    assert "'yesterday' is not a time" in found.output


def test_the_command_line_shows_the_past_and_its_warning(
    built: LakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_pipeline.cli._lake", lambda: built.lake)
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
