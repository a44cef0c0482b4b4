"""Folders of arrival days, also where a year begins in another one's week."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.arrival import Look, arrival_day, looks, newest_look, week_years

STYLES = ("{0:04d}/{1:%m/%d}/07/", "year={0:04d}/month={1:%m}/day={1:%d}/")


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


@given(
    day=st.dates(date(2019, 1, 1), date(2032, 12, 31)),
    before=st.integers(0, 40),
    style=st.sampled_from(STYLES),
    data=st.data(),
)
def test_every_spelling_of_a_day_is_looked_at(
    day: date, before: int, style: str, data: st.DataObject
) -> None:
    year = data.draw(st.sampled_from(sorted({day.year, *week_years(day)})))
    key = style.format(year, day) + f"orders-1-{day:%Y-%m-%d}-07-00-00-0a1b"
    since, today = day - timedelta(before), day + timedelta(data.draw(st.integers(0, 40)))
    assert any(_shows(look, key) for look in looks(since, today))
    assert any(_shows(look, key) for look in newest_look(day, []))
    assert arrival_day(key, today) == day
    # Without a time in the name, that of the object decides between two years.
    assert arrival_day(style.format(year, day) + "part-0", day + timedelta(1)) == day


def _shows(look: Look, key: str) -> bool:
    return key.startswith(look.prefix) and key > look.after


def test_two_listings_are_enough_but_around_new_year() -> None:
    assert looks(date(2026, 11, 18), date(2026, 11, 21)) == [
        Look("2", "2026/11/18/"),
        Look("year=2", "year=2026/month=11/day=18/"),
    ]
    # ISO weeks put the first days of 2027 into folders of 2026.
    assert Look("2026/01/01/") in looks(date(2026, 12, 30), date(2027, 1, 2))


def test_a_folder_of_a_week_year_is_not_taken_again_a_year_later() -> None:
    key = "2026/12/29/05/orders-1-2025-12-29-05-00-00-0a1b"
    assert arrival_day(key, date(2026, 12, 30)) == date(2025, 12, 29)


@pytest.mark.parametrize("key", ["2026/part-0", "x/2026/11/21/a", "year=2026/month=11/a"])
def test_other_folders_are_no_days(key: str) -> None:
    assert arrival_day(key, date(2026, 11, 21)) is None


@pytest.mark.parametrize("key", ["2026/13/01/a", "2026/02/30/a"])
def test_impossible_days_are_none(key: str) -> None:
    assert arrival_day(key, date(2026, 11, 21)) is None


def test_the_newest_look_goes_on_behind_what_is_known() -> None:
    day = date(2026, 11, 21)
    known = ["2026/11/20/23/z", "2026/11/21/05/a", "2026/11/21/06/b"]
    assert newest_look(day, known)[0] == Look("2026/11/21/", "2026/11/21/06/b")
