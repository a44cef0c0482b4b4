"""Folders of days in S3, by their names: on which day an object arrived, and where more will be.

A folder is the day on which the oldest record of its objects arrived (docs/aws_facts.md, Firehose).
Users spell it in many ways: `2026/11/21/`, `year=2026/month=11/day=21/`, `dt=2026-11-21/`, mostly
with the hour behind it. Prefixes written with Java's `YYYY` instead of `yyyy` name the week's year,
which is another one around New Year.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta

Parts = tuple[int, ...]
"""Year, month and day of a folder, or as many of them as its name and its parents' tell."""

_LABEL = r"(?:[A-Za-z_][A-Za-z0-9_.-]*=)?"
_YEAR, _MONTH, _DAY = r"(201[2-9]|20[2-9]\d|21\d\d)", r"(0[1-9]|1[0-2])", r"(0[1-9]|[12]\d|3[01])"
_HOUR = r"(?:\D.*|\d\d(?:\D.*)?)?"
_NAMES = (
    (
        rf"{_LABEL}{_YEAR}([-_.]?){_MONTH}\2{_DAY}{_HOUR}",
        rf"{_LABEL}{_YEAR}([-_.]?){_MONTH}",
        rf"{_LABEL}{_YEAR}",
    ),
    (rf"{_LABEL}{_MONTH}[-_.]?{_DAY}{_HOUR}", rf"{_LABEL}{_MONTH}"),
    (rf"{_LABEL}{_DAY}{_HOUR}",),
)
_PATTERNS = tuple(tuple(re.compile(name).fullmatch for name in names) for names in _NAMES)
_LABEL_OF = re.compile(_LABEL).match
_NAMED_TIME = re.compile(r"-(\d{4})-(\d{2})-(\d{2})-\d{2}-\d{2}-\d{2}-").search
_LAYOUT = {"{yyyy}": r"(?P<y>\d{4})", "{MM}": r"(?P<m>\d{2})", "{dd}": r"(?P<d>\d{2})", "*": ".*?"}
BY_TIME_OF_OBJECT = "last_modified"
"""A layout that tells no day: that of an object is the one on which it was written."""


def dated(name: str, known: Parts = ()) -> Parts | None:
    """The parts of a day that a folder's name adds to those of its parents, None: it adds none."""
    for matches in _PATTERNS[len(known)] if len(known) < 3 else ():
        if match := matches(name):
            found = (*known, *(int(part) for part in match.groups() if part and part.isdigit()))
            return found if len(found) < 3 or _day(*found) else None
    return None


def label_of(name: str) -> str:
    """What stands before the digits in the name of a folder: `dt=`, `year=`, or nothing."""
    match = _LABEL_OF(name)
    return match[0] if match else ""


def may_hold(parts: Parts, since: date) -> bool:
    """Whether a folder may have objects that arrived on the day `since` or later.

    Its year may be a week-year, and then mean the one before or after for some days.
    """
    if len(parts) == 3:
        return any(day >= since for day in _meanings(*parts))
    months = [parts[1]] if len(parts) == 2 else range(1, 13)
    days = range(31, 0, -1)
    return any(may_hold((parts[0], month, day), since) for month in months for day in days)


def arrival_day(parts: Parts, name: str, modified: date) -> date:
    """The day that a folder of a whole day stands for, for an object with this name in it.

    Some folders stand for two days a year apart: the time in the object's name tells which, else
    when it was written (`modified`).
    """
    named = _NAMED_TIME(name)
    about = (_day(*map(int, named.groups())) if named else None) or modified
    return min(_meanings(*parts), key=lambda day: abs(day - about))


def by_layout(layout: str) -> Callable[[str, date], date | None]:
    """What tells the day of a key, behind its prefix, and the day it was written, by a setting.

    `layout`: `last_modified`, or the key with `{yyyy}`, `{MM}`, `{dd}` and `*` for anything, up to
    where all are told. The day is None for a key that is not like that. Raises `ValueError` for a
    layout that tells no day.
    """
    if layout == BY_TIME_OF_OBJECT:
        return lambda _key, modified: modified
    pieces = re.split(r"(\{yyyy\}|\{MM\}|\{dd\}|\*)", layout)
    if sorted(p for p in pieces if p.startswith("{")) != ["{MM}", "{dd}", "{yyyy}"]:
        raise ValueError("a layout has {yyyy}, {MM} and {dd} once each, or is last_modified")
    spelled = "".join(_LAYOUT.get(piece) or re.escape(piece) for piece in pieces)
    matches = re.compile(spelled, re.DOTALL).match

    def day(key: str, _modified: date) -> date | None:
        match = matches(key)
        return match and _day(int(match["y"]), int(match["m"]), int(match["d"]))

    return day


def newest_of(keys: Iterable[str]) -> dict[str, str]:
    """Where new objects would be: what keys begin with before their dates, each with its last key.

    Days and the times in Firehose's names sort: a new object comes behind all that are known.
    """
    found: dict[str, str] = {}
    for key in keys:
        lead = _lead(key)
        found[lead] = max(found.get(lead, ""), key)
    return found


def _lead(key: str) -> str:
    at = 0
    for segment in key.split("/")[:-1]:
        if dated(segment) is not None:
            return key[:at] + label_of(segment)
        at += len(segment) + 1
    return ""


def week_years(day: date) -> set[int]:
    """The years of a day's week: in the USA, whose weeks end on Saturday, and by ISO 8601."""
    saturday = day + timedelta(days=(5 - day.weekday()) % 7)
    return {saturday.year, day.isocalendar().year}


def _meanings(year: int, month: int, day: int) -> Iterator[date]:
    """The days that a folder may stand for."""
    for candidate in (year, year - 1, year + 1):
        found = _day(candidate, month, day)
        if found and (candidate == year or year in week_years(found)):
            yield found


def _day(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None
