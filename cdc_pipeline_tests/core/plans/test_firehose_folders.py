"""Folders of arrival days, also where a year begins in another one's week."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.plans.firehose_folders import (
    Parts,
    arrival_day,
    by_layout,
    dated,
    may_hold,
    newest_of,
    week_years,
)

STYLES = (
    "{0:04d}/{1:%m/%d}/07/",
    "{0:04d}/{1:%m/%d}/",
    "year={0:04d}/month={1:%m}/day={1:%d}/",
    "year={0:04d}/{1:%m/%d}/",
    "{0:04d}/month={1:%m}/{1:%d}/",
    "dt={0:04d}-{1:%m-%d}/",
    "{0:04d}-{1:%m-%d}/",
    "{0:04d}-{1:%m-%d}-07/",
    "{0:04d}-{1:%m-%d}T07/",
    "date={0:04d}-{1:%m-%d}/hour=07/",
    "{0:04d}{1:%m%d}/",
    "{0:04d}{1:%m%d}07/",
    "{0:04d}_{1:%m_%d}/",
    "{0:04d}-{1:%m}/{1:%d}/",
    "{0:04d}/{1:%m-%d}/07/",
)


@pytest.mark.parametrize(
    ("day", "years"),
    [
        (date(2025, 12, 27), {2025}),  # a Saturday
        (date(2025, 12, 28), {2025, 2026}),  # Sunday: a new week in the USA
        (date(2025, 12, 29), {2026}),  # Monday: by ISO, too
        (date(2026, 1, 1), {2026}),
        (date(2027, 1, 1), {2026, 2027}),  # a Friday; the ISO week is the old year's
        (date(2027, 1, 4), {2027}),
        (date(2022, 1, 1), {2021, 2022}),
        (date(2026, 6, 30), {2026}),
    ],
)
def test_week_years(day: date, years: set[int]) -> None:
    assert week_years(day) == years


def parts_of(folders: str) -> Parts:
    """What a path of folders tells of a day, folder by folder."""
    known: Parts = ()
    for name in folders.rstrip("/").split("/"):
        found = dated(name, known)
        if found is None:
            break
        known = found
    return known


@given(
    day=st.dates(date(2019, 1, 1), date(2032, 12, 31)),
    before=st.integers(0, 400),
    style=st.sampled_from(STYLES),
    data=st.data(),
)
def test_every_spelling_of_a_day_is_looked_at(
    day: date, before: int, style: str, data: st.DataObject
) -> None:
    year = data.draw(st.sampled_from(sorted({day.year, *week_years(day)})))
    folders, since = style.format(year, day), day - timedelta(before)
    parts = parts_of(folders)
    assert parts == (year, day.month, day.day)
    for length in (1, 2, 3):
        assert may_hold(parts[:length], since)
    name = f"orders-1-{day:%Y-%m-%d}-07-00-00-0a1b"
    assert arrival_day(parts, name, day + timedelta(500)) == day
    # Without a time in the name, that of the object decides between two years.
    assert arrival_day(parts, "part-0", day + timedelta(1)) == day


@given(day=st.dates(date(2019, 1, 1), date(2032, 12, 31)), later=st.integers(1, 400))
def test_what_is_before_a_day_is_not_listed(day: date, later: int) -> None:
    since = day + timedelta(later)
    parts = (day.year, day.month, day.day)
    meant = {date(year, day.month, day.day) for year in (day.year,)}
    if later > 370:  # a week-year may mean the year after
        assert not may_hold(parts, since)
        assert not may_hold(parts[:2], since + timedelta(31))
    assert may_hold(parts, min(meant))


def test_a_folder_of_a_week_year_is_not_taken_again_a_year_later() -> None:
    name = "orders-1-2025-12-29-05-00-00-0a1b"
    assert arrival_day((2026, 12, 29), name, date(2026, 12, 30)) == date(2025, 12, 29)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("1234", ()),  # an account's or an order's
        ("2011", ()),
        ("202611211", ()),
        ("orders2026", ()),
        ("2026-11-31", ()),
        ("2026-1-2", ()),
        ("13", (2026,)),
        ("month=Nov", (2026,)),
        ("30", (2026, 2)),
        ("00", (2026, 2)),
        ("07", (2026, 2, 3)),
        ("", ()),
    ],
)
def test_other_names_are_no_days(name: str, known: Parts) -> None:
    assert dated(name, known) is None


def test_new_objects_come_behind_the_newest_ones_of_each_spelling() -> None:
    known = [
        "2026/11/20/23/z",
        "2026/11/21/06/b",
        "2026/11/21/05/a",
        "eu/dt=2026-11-21/x",
        "eu/dt=2026-11-20/y",
    ]
    assert newest_of(known) == {"": "2026/11/21/06/b", "eu/dt=": "eu/dt=2026-11-21/x"}


def test_a_layout_of_the_settings_tells_the_day() -> None:
    day = by_layout("*/day-{dd}.{MM}.{yyyy}")
    assert day("eu/7/day-21.11.2026/part-0", date(2000, 1, 1)) == date(2026, 11, 21)
    for key in ("day-21.11.2026/part-0", "eu/day-31.02.2026/x", "eu/day-1.11.2026/x", "part-0"):
        assert day(key, date(2000, 1, 1)) is None
    assert by_layout("last_modified")("part-0", date(2026, 1, 2)) == date(2026, 1, 2)


@pytest.mark.parametrize("layout", ["", "{yyyy}/{MM}", "{yyyy}/{MM}/{dd}/{dd}", "modified"])
def test_a_layout_that_tells_no_day_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match="yyyy"):
        by_layout(layout)
