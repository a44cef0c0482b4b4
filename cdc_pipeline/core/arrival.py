"""Firehose's folders in S3: the arrival days that a key tells, and where to look for them.

A folder is the day on which the oldest record of its objects arrived (DYNAMODB_CDC section 4), as
`2026/11/21/` or `year=2026/month=11/day=21/`, mostly with the hour behind it. Prefixes written with
Java's `YYYY` instead of `yyyy` name the week's year, which is another one around New Year.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

_FOLDER = re.compile(r"(?:year=)?(\d{4})/(?:month=)?(\d{2})/(?:day=)?(\d{2})/").match
_YEAR = re.compile(r"(?:year=)?\d{4}/").fullmatch
_NAMED_TIME = re.compile(r"-(\d{4})-(\d{2})-(\d{2})-\d{2}-\d{2}-\d{2}-").search
_STYLES = ("{:04d}/{:02d}/{:02d}/", "year={:04d}/month={:02d}/day={:02d}/")


@dataclass(frozen=True)
class Look:
    """One listing: keys with `prefix` that come behind `after`; both relative to a root."""

    prefix: str
    after: str = ""


def is_year_folder(name: str) -> bool:
    """Whether a folder's name, with its slash, is that of a year."""
    return _YEAR(name) is not None


def looks(since: date, until: date) -> list[Look]:
    """Listings that show every object that arrived from `since` on; `until`: today.

    Folders of one style sort by day, so one listing behind the first day shows all; only days
    that a week-year spells with an earlier year sort before it.
    """
    found = []
    for style in _STYLES:
        after = style.format(since.year, since.month, since.day)
        found.append(Look(style[: style.index("{")] + "2", after))
        days = (since + timedelta(days=n) for n in range((until - since).days + 2))
        spelled = {style.format(y, d.month, d.day) for d in days for y in week_years(d)}
        found += [Look(folder) for folder in sorted(spelled) if folder < after]
    return found


def newest_look(day: date, known: list[str]) -> list[Look]:
    """Listings that show an object of `day` that is none of the `known` keys, most likely.

    Firehose's names begin with the time, so a new one comes behind all known ones of its folder.
    """
    found = []
    for style in _STYLES:
        for year in sorted({day.year, *week_years(day)}):
            folder = style.format(year, day.month, day.day)
            found.append(Look(folder, max((k for k in known if k.startswith(folder)), default="")))
    return found


def arrival_day(key: str, modified: date) -> date | None:
    """The day that a key's folder stands for; None if it is in no such folder.

    `key` is relative to its root. A year may be a week-year, so some folders stand for two days a
    year apart: the time in the object's name tells which, else when it was written (`modified`).
    """
    match = _FOLDER(key)
    if match is None:
        return None
    year, month, day = map(int, match.groups())
    candidates = [d for y in (year, year - 1, year + 1) for d in _day(y, month, day)]
    meant = [d for d in candidates if year in (d.year, *week_years(d))]
    named = _NAMED_TIME(key.rpartition("/")[2])
    about = next(_day(*map(int, named.groups())), modified) if named else modified
    return min(meant, key=lambda d: abs(d - about), default=None)


def week_years(day: date) -> set[int]:
    """The years of a day's week: in the USA, whose weeks end on Saturday, and by ISO 8601."""
    saturday = day + timedelta(days=(5 - day.weekday()) % 7)
    return {saturday.year, day.isocalendar().year}


def _day(year: int, month: int, day: int) -> Iterator[date]:
    try:
        yield date(year, month, day)
    except ValueError:
        return
