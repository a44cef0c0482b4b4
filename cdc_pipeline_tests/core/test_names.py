"""Names and places as in docs/architecture.md, stored formats."""

import re
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.names import TablePaths, day_folder, entry_number, object_name, safe_name

_NONCE = "0123456789abcdef"
_PATHS = TablePaths("cdc", "orders")


@given(st.from_regex(r"[a-zA-Z0-9_.-]{3,255}", fullmatch=True))
def test_safe_names_are_sql_identifiers(table: str) -> None:
    name = safe_name(table)
    assert re.fullmatch(r"[a-z_][a-z0-9_]*", name)
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("table", "name"),
    [("Orders", "orders"), ("a.b-c", "a_b_c"), ("2024-x", "t_2024_x"), ("_x_", "_x_")],
)
def test_safe_name(table: str, name: str) -> None:
    assert safe_name(table) == name


@given(st.integers(0, 4_000_000_000_000_000))
def test_days_are_utc_days(time_us: int) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert day_of(time_us) == (epoch + timedelta(microseconds=time_us)).date()


def test_the_last_microsecond_of_a_day_is_of_that_day() -> None:
    midnight = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
    assert (day_of(midnight - 1), day_of(midnight)) == (date(2026, 2, 28), date(2026, 3, 1))


def test_day_folders_are_padded() -> None:
    assert day_folder(date(2026, 3, 1)) == "year=2026/month=03/day=01/"
    assert day_folder(date(987, 12, 31)) == "year=0987/month=12/day=31/"


@given(st.integers(0, 10**12 - 1), st.from_regex(r"[0-9a-f]{16}", fullmatch=True))
def test_our_objects_say_their_entry(n: int, nonce: str) -> None:
    assert entry_number(object_name(n, nonce)) == n
    day = date(2026, 3, 1)
    assert entry_number(_PATHS.landed(day, n, nonce)) == n
    assert entry_number(_PATHS.quarantined("unreadable-record", day, n, nonce)) == n


@pytest.mark.parametrize(
    "key",
    [
        "part-00000.parquet",
        f"1-{_NONCE}.parquet",
        f"{1:013d}-{_NONCE}.parquet",
        f"{1:012d}-{_NONCE[:-1]}.parquet",
        f"{1:012d}-{_NONCE.upper()}.parquet",
        f"{1:012d}-{_NONCE}",
        f"{1:012d}-{_NONCE}.parquet/",
        f"{1:012d}-{_NONCE}.parquet/part-0",
        f"x{1:012d}-{_NONCE}.parquet",
        "",
    ],
)
def test_files_of_others_have_no_entry(key: str) -> None:
    assert entry_number(key) is None
    assert entry_number(f"dynamo-cdc/cdc/orders/year=2026/month=01/day=01/{key}") is None


@given(st.lists(st.integers(0, 10**12 - 1), unique=True))
def test_entries_list_in_their_order(numbers: list[int]) -> None:
    for place in (_PATHS.entry, _PATHS.summary):
        assert sorted(map(place, numbers)) == list(map(place, sorted(numbers)))


def test_places_are_those_that_others_rely_on() -> None:
    day = date(2026, 3, 1)
    folder = "year=2026/month=03/day=01"
    assert _PATHS.landed(day, 7, _NONCE) == (
        f"dynamo-cdc/cdc/orders/{folder}/000000000007-{_NONCE}.parquet"
    )
    assert _PATHS.quarantined("kind", day, 7, _NONCE) == (
        f"dynamo-cdc/cdc/error/orders/kind/{folder}/000000000007-{_NONCE}.jsonl"
    )
    assert _PATHS.entry(7) == "_cdc/cdc/orders/log/000000000007.json"
    assert _PATHS.summary(7).startswith(_PATHS.state)
    assert not _PATHS.summary(7).startswith(_PATHS.entries)
