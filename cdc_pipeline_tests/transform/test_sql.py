"""The portable SQL against the reference fold, through DuckDB, and its portability."""

import itertools
import random
from importlib.resources import files
from typing import Any

import duckdb
import pytest
import sqlglot
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from sqlglot import exp

from cdc_pipeline.core.changes.fold import KeyedChange, Row, fold
from cdc_pipeline.core.changes.order import order_key, position
from cdc_pipeline.transform.sql import load_sql
from cdc_pipeline_tests.healed_story import healed_story

_FILES = sorted(
    path.name.removesuffix(".sql")
    for path in files("cdc_pipeline.transform.sql").iterdir()
    if path.name.endswith(".sql")
)
_NARROW = "item_key VARCHAR, order_key VARCHAR, item VARCHAR, write_time_us BIGINT, place BIGINT"
_STONES = "item_key VARCHAR, order_key VARCHAR, write_time_us BIGINT"
_CHANGES = f"op VARCHAR, {_NARROW}"

_orders = st.builds(
    lambda generation, depth, number: order_key(generation, position(depth, number)),
    st.integers(1, 3),
    st.integers(0, 2),
    # Of different lengths, so that a comparison as text or number tells.
    st.sampled_from([0, 5, 9, 10, 99, 100, 10**20]),
)
_keys = st.sampled_from(["a", "b", "日本", ""])


def _image(key: str, order: str) -> str | None:
    """What an item is after a write: each (key, order) is one write with one image."""
    return None if sum(map(ord, order)) % 3 == 0 else f"{key}@{order}"


def _time(order: str) -> int:
    return sum(map(ord, order))


_changes = st.lists(
    st.tuples(_keys, _orders).map(lambda at: KeyedChange(at[0], at[1], _image(*at))), max_size=20
)
_states = st.dictionaries(_keys, _orders).map(
    lambda base: {key: Row(order, _image(key, order)) for key, order in base.items()}
)


def _fill(connection: duckdb.DuckDBPyConnection, name: str, columns: str, rows: list[Any]) -> None:
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} ({columns})")
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        connection.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)


def _sql_fold(
    connection: duckdb.DuckDBPyConnection,
    items: dict[str, Row],
    tombstones: dict[str, Row],
    changes: list[KeyedChange],
) -> tuple[dict[str, Row], dict[str, Row]]:
    # Places of the two relations are compared with their own alone.
    base = [
        (k, r.order_key, r.item, _time(r.order_key), n) for n, (k, r) in enumerate(items.items())
    ]
    _fill(connection, "base", _NARROW, base)
    stones = [(k, r.order_key, _time(r.order_key)) for k, r in tombstones.items()]
    _fill(connection, "tombstones", _STONES, stones)
    rows = [
        ("D" if c.item is None else "U", c.key, c.order_key, c.item, _time(c.order_key), place)
        for place, c in enumerate(changes)
    ]
    _fill(connection, "changes", _CHANGES, rows)
    for name in ("winners", "effective"):
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {load_sql(name)}")
    folded = connection.execute(load_sql("fold")).fetchall()
    left = connection.execute(load_sql("tombstones")).fetchall()
    assert len({row[0] for row in folded}) == len(folded)
    assert len({row[0] for row in left}) == len(left)
    assert all(row[-1] == _time(row[1]) for row in folded + left)
    return {k: Row(o, i) for k, o, i, _ in folded}, {k: Row(o, None) for k, o, _ in left}


def _split(state: dict[str, Row]) -> tuple[dict[str, Row], dict[str, Row]]:
    items = {key: row for key, row in state.items() if row.item is not None}
    return items, {key: row for key, row in state.items() if row.item is None}


@budget(max_examples=60)
@given(_states, _changes, st.randoms(use_true_random=False))
def test_the_sql_fold_is_the_reference_fold(
    state: dict[str, Row], changes: list[KeyedChange], chance: random.Random
) -> None:
    delivered = changes + chance.sample(changes, len(changes) // 2)
    chance.shuffle(delivered)
    with duckdb.connect() as connection:
        found = _sql_fold(connection, *_split(state), delivered)
        assert found == _split(fold(state, changes))
        assert _sql_fold(connection, *found, delivered) == found


@budget(max_examples=40)
@given(_changes, st.lists(st.integers(0, 20), max_size=3))
def test_folding_in_steps_is_folding_at_once(changes: list[KeyedChange], cuts: list[int]) -> None:
    """Whatever arrives late, deleted items included, the steps end in the same state."""
    with duckdb.connect() as connection:
        state: tuple[dict[str, Row], dict[str, Row]] = ({}, {})
        places = [0, *sorted(cuts), len(changes)]
        for start, end in itertools.pairwise(places):
            state = _sql_fold(connection, *state, changes[start:end])
        assert state == _split(fold({}, changes))


@budget(max_examples=40)
@given(_states, _changes, _changes)
def test_tombstones_ahead_of_their_base_lead_to_the_same_state(
    state: dict[str, Row], changes: list[KeyedChange], later: list[KeyedChange]
) -> None:
    """A crash between the two commits: the next fold sees new tombstones and the old base."""
    with duckdb.connect() as connection:
        items, tombstones = _split(state)
        _, ahead = _sql_fold(connection, items, tombstones, changes)
        found = _sql_fold(connection, items, ahead, changes + later)
        assert found == _split(fold(state, changes + later))


def _landed(number: int, uuid: str, keys: str, order: str, landed_at: int) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "keys": keys,
        "order_key": order,
        "landed_at": landed_at,
        "sequence_number": str(number),
        "op": "U",
        "generation": 1,
    }


_CDC_COLUMNS = (
    "uuid VARCHAR, op VARCHAR, time_stamp BIGINT, data VARCHAR, keys VARCHAR, new_image VARCHAR, "
    "old_image VARCHAR, write_time_us BIGINT, position VARCHAR, sequence_number VARCHAR, "
    "shard_id VARCHAR, event_id VARCHAR, is_ttl_delete BOOLEAN, transport VARCHAR, "
    "landed_at BIGINT, generation INT, order_key VARCHAR"
)
_CDC_NAMES = [part.split()[0] for part in _CDC_COLUMNS.split(", ")]


def _query(sql: str, relation: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        cells = [[row.get(name) for name in _CDC_NAMES] for row in rows]
        _fill(connection, relation, _CDC_COLUMNS, cells)
        result = connection.execute(sql)
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _build_cdc(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        cells = [[row.get(name) for name in _CDC_NAMES] for row in rows]
        _fill(connection, "landed", _CDC_COLUMNS, cells)
        connection.execute(f"CREATE TEMP TABLE redundant_heals AS {load_sql('redundant_heals')}")
        result = connection.execute(load_sql("cdc"))
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


@budget(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("uvwx"),
            st.sampled_from("ab"),
            st.integers(1, 3),
            _orders,
            st.integers(0, 3),
        ),
        max_size=12,
    )
)
def test_cdc_keeps_the_last_place_in_the_first_generation_of_every_identity(
    seen: list[tuple[str, str, int, str, int]],
) -> None:
    # Rows of one identity have one place, but for those that moved in a tie or landed in a heal.
    rows = [
        _landed(n, u, f"{u}{k}", f"{g:06d}.{o}", at) | {"generation": g}
        for n, (u, k, g, o, at) in enumerate(seen)
    ]
    found = _build_cdc(rows)
    assert sorted(row["uuid"] for row in found) == sorted({row["uuid"] for row in rows})
    for row in found:
        repeats = [r for r in rows if r["uuid"] == row["uuid"]]
        first = min(r["generation"] for r in repeats)
        place = max(r["order_key"] for r in repeats if r["generation"] == first)
        landed = min(r["landed_at"] for r in repeats if r["order_key"] == place)
        assert (row["generation"], row["order_key"], row["landed_at"]) == (first, place, landed)
    places = [(row["keys"], row["order_key"]) for row in found]
    assert places == sorted(places)


@budget(max_examples=60)
@given(st.integers(0, 10**9))
def test_a_captured_change_is_in_cdc_once_and_any_other_once_for_its_windows(seed: int) -> None:
    story = healed_story(seed)
    rows = _build_cdc([row | {"time_stamp": 0, "landed_at": 0} for row in story.landed])
    assert sorted((r["uuid"], r["generation"]) for r in rows) == sorted(story.expected)
    captured = {
        r["uuid"]: r for r in story.landed if r["transport"] in ("dynamodb_streams", "kinesis")
    }
    for row in rows:
        if row["uuid"] in captured:
            kept = captured[row["uuid"]]
            names = ("transport", "event_id", "is_ttl_delete", "old_image")
            assert [row[name] for name in names] == [kept[name] for name in names]
            # Behind its own place only where it tells a line there.
            lines = [r for r in story.landed if r["order_key"] == row["order_key"]]
            assert row["order_key"] == kept["order_key"] or lines[0]["transport"] == "export"
    # A line of a window that reaches past its gap may stand before records of the time between, but
    # the last one of an item is its last write, or what was read of it behind that.
    for key in {row["keys"] for row in rows}:
        of_item = [
            (r["order_key"], story.numbers.get((r["uuid"], r["generation"]), -1))
            for r in rows
            if r["keys"] == key
        ]
        last = max(of_item)[1]
        assert last in (-1, max(number for _, number in of_item))


@pytest.mark.parametrize("again", [False, True])
def test_one_heal_of_several_gaps_keeps_the_order_of_an_item(again: bool) -> None:
    """A delete between two gaps was captured; a line of the first gap is of the time before it."""
    delete = {"op": "D", "new_image": None, "write_time_us": 7_000_000}
    rows = [
        _row_of("event", 12, transport="dynamodb_streams", event_id="e", **delete),
        _row_of("update", 13, op="U", new_image="x", write_time_us=3_000_000),
        _row_of("delete", 13, **{**delete, "write_time_us": 7_300_000}),
    ]
    if again:  # the record once more, behind the heal
        rows.append({**rows[0], "generation": 14, "order_key": order_key(14, position(1, 0))})
    found = _build_cdc(rows)
    assert [(row["uuid"], row["generation"]) for row in found] == [("update", 13), ("event", 12)]
    versions = _query(load_sql("history"), "cdc", found)
    assert [(v["op"], v["is_current"]) for v in versions] == [("U", False), ("D", False)]


def _row_of(uuid: str, generation: int, **more: Any) -> dict[str, Any]:
    place = order_key(generation, position(0, more["write_time_us"]))
    row = {"uuid": uuid, "keys": "k", "generation": generation, "order_key": place}
    return {"transport": "export", "event_id": "", "landed_at": 0, "time_stamp": 0, **row, **more}


@pytest.mark.parametrize(
    ("transport", "event_id", "time_us", "line_us", "is_known"),
    [
        ("dynamodb_streams", "e", 7_000_000, 7_999_999, True),
        ("dynamodb_streams", "e", 7_000_000, 8_000_000, False),
        ("dynamodb_streams", "e", 7_000_000, 6_999_999, False),
        ("read", "e", 7_000_000, 7_999_999, True),  # it completes an event
        ("kinesis", "e", 7_654_321, 7_654_321, True),
        ("kinesis", "e", 7_654_321, 7_654_322, False),
        ("kinesis", "e", 7_654_000, 7_654_999, True),  # a stream may tell ms
        ("kinesis", "e", 7_654_000, 7_655_000, False),
        ("kinesis", "e", 7_000_000, 7_001_000, False),
        ("firehose", "", 7_654_321, 7_654_321, True),
        ("firehose", "", 7_000_000, 7_400_000, False),
        ("read", "", 7_000_000, 7_000_000, False),  # read by a heal, as lines are
    ],
)
@pytest.mark.parametrize("op", ["U", "D"])
def test_a_record_tells_lines_of_its_time_as_exactly_as_its_transport_knows_it(
    transport: str, event_id: str, time_us: int, line_us: int, is_known: bool, op: str
) -> None:
    image = None if op == "D" else "x"
    same = {"keys": "a", "op": op, "new_image": image, "order_key": "1"}
    record = {"uuid": "r", "generation": 1, "write_time_us": time_us, "event_id": event_id}
    line = {"uuid": "l", "generation": 2, "write_time_us": line_us, "event_id": ""}
    rows = [{**record, **same, "transport": transport}, {**line, **same, "transport": "export"}]
    lines = [row for row in _build_cdc(rows) if row["transport"] == "export"]
    assert len(lines) == (0 if is_known else 1)
    for other in ({"keys": "b"}, {"op": "U", "new_image": "y"}, {"op": "U", "new_image": None}):
        changed = [rows[0] | other, rows[1]]
        assert any(row["transport"] == "export" for row in _build_cdc(changed))


_versions = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 50), st.sampled_from("IUD")),
    max_size=12,
    unique_by=lambda version: version[:2],
)


@budget(max_examples=40)
@given(_versions)
def test_history_is_a_chain_of_versions(versions: list[tuple[str, int, str]]) -> None:
    rows = [
        {"keys": key, "order_key": f"{at:03d}", "time_stamp": at, "op": op, "uuid": f"{key}{at}"}
        for key, at, op in versions
    ]
    found = _query(load_sql("history"), "cdc", rows)
    assert len(found) == len(rows)
    for key in {row["keys"] for row in rows}:
        chain = sorted((r for r in found if r["item_key"] == key), key=lambda r: r["valid_from"])
        ends = [*(row["valid_from"] for row in chain[1:]), None]
        assert [row["valid_to"] for row in chain] == ends
        assert [row["is_current"] for row in chain] == [
            row is chain[-1] and row["op"] != "D" for row in chain
        ]


def test_history_orders_versions_of_one_time_by_their_place() -> None:
    rows = [
        {"keys": "a", "order_key": order, "time_stamp": 7, "op": op}
        for order, op in (("2", "D"), ("1", "U"), ("3", "I"))
    ]
    found = sorted(_query(load_sql("history"), "cdc", rows), key=lambda row: row["order_key"])
    assert [row["is_current"] for row in found] == [False, False, True]


def test_history_marks_what_only_a_heal_knows() -> None:
    transports = [
        ("dynamodb_streams", "e1", False),
        ("read", "e1", False),  # completes a bare event
        ("export", "", True),
        ("read", "", True),  # the ghost rule
        ("baseline", "", True),  # a later baseline shows it
        (None, None, False),  # made by an older Lambda
    ]
    rows = [
        {"keys": "a", "order_key": str(n), "transport": transport, "event_id": event}
        for n, (transport, event, _) in enumerate(transports)
    ]
    found = sorted(_query(load_sql("history"), "cdc", rows), key=lambda row: row["order_key"])
    assert [row["is_collapsed"] for row in found] == [collapsed for _, _, collapsed in transports]


@pytest.mark.parametrize("dialect", ["duckdb", "spark", "trino"])
@pytest.mark.parametrize("name", _FILES)
def test_every_file_is_one_statement_in_every_dialect(name: str, dialect: str) -> None:
    (statement,) = sqlglot.parse(load_sql(name), read=dialect)
    assert isinstance(statement, exp.Query)
    # What parses differently would run differently; no column that is ordered by is ever null.
    read_by_duckdb = sqlglot.parse_one(load_sql(name), read="duckdb")
    for tree in (statement, read_by_duckdb):
        for ordered in tree.find_all(exp.Ordered):
            ordered.set("nulls_first", None)
    assert statement == read_by_duckdb


def test_the_files_are_all_tested() -> None:
    folding = ["effective", "fold", "tombstones", "winners"]
    others = ["breaks", "cdc", "history", "baseline_changes", "redundant_heals", "ttl_archive"]
    assert sorted([*folding, *others]) == _FILES
