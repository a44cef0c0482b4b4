"""Firehose's folders in S3: the arrival day in their names, and the prefixes of new objects.

A folder's day is the arrival day of the oldest record in its objects (docs/aws_facts.md, Firehose).
Users write it in many ways: `2026/11/21/`, `year=2026/month=11/day=21/`, `dt=2026-11-21/`, mostly
followed by the hour. Prefixes with Java's `YYYY` instead of `yyyy` contain the week's year, which
differs around New Year.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta

Parts = tuple[int, ...]
"""Year, month and day of a folder, or the first of them, from its name and its parents' names."""

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
"""Layout without a day: an object's day is that of its last modification."""


def dated(name: str, known: Parts = ()) -> Parts | None:
    """Add the date parts in a folder's name to those of its parents; None: the name has none."""
    for matches in _PATTERNS[len(known)] if len(known) < 3 else ():
        if match := matches(name):
            parts = (*known, *(int(part) for part in match.groups() if part and part.isdigit()))
            return parts if len(parts) < 3 or _day(*parts) else None
    return None


def label_of(name: str) -> str:
    """Return the label before the digits in a folder's name: `dt=`, `year=`, or empty."""
    match = _LABEL_OF(name)
    return match[0] if match else ""


def may_hold(parts: Parts, since: date) -> bool:
    """Whether a folder may contain objects that arrived on the day `since` or later.

    Its year may be a week-year, which differs from the calendar year on some days.
    """
    if len(parts) == 3:
        return any(day >= since for day in _meanings(*parts))
    months = [parts[1]] if len(parts) == 2 else range(1, 13)
    days = range(31, 0, -1)
    return any(may_hold((parts[0], month, day), since) for month in months for day in days)


def arrival_day(parts: Parts, name: str, modified: date) -> date:
    """Return the arrival day of an object by its folder with year, month and day.

    Some folders stand for two days, a year apart: the time in the object's name decides, or
    `modified`, the day of its last modification.
    """
    named = _NAMED_TIME(name)
    about = (_day(*map(int, named.groups())) if named else None) or modified
    return min(_meanings(*parts), key=lambda day: abs(day - about))


def by_layout(layout: str) -> Callable[[str, date], date | None]:
    """Return a function from a key, without its prefix, and its day of writing to its arrival day.

    `layout`: the setting: `last_modified`, or the key with `{yyyy}`, `{MM}`, `{dd}` and `*` for
    anything, up to the last of the three. The function returns None for a key of another layout.
    Raises `ValueError` for a layout without a day.
    """
    if layout == BY_TIME_OF_OBJECT:
        return lambda _key, modified: modified
    pieces = re.split(r"(\{yyyy\}|\{MM\}|\{dd\}|\*)", layout)
    if sorted(p for p in pieces if p.startswith("{")) != ["{MM}", "{dd}", "{yyyy}"]:
        raise ValueError("a layout contains {yyyy}, {MM} and {dd} once each, or is last_modified")
    spelled = "".join(_LAYOUT.get(piece) or re.escape(piece) for piece in pieces)
    matches = re.compile(spelled, re.DOTALL).match

    def day(key: str, _modified: date) -> date | None:
        match = matches(key)
        return match and _day(int(match["y"]), int(match["m"]), int(match["d"]))

    return day


def newest_of(keys: Iterable[str]) -> dict[str, str]:
    """Return the prefixes of new objects: keys up to their dates, each with its last known key.

    Days and the times in Firehose's names sort: a new object comes after all known ones.
    """
    last_keys: dict[str, str] = {}
    for key in keys:
        prefix = _undated_prefix(key)
        last_keys[prefix] = max(last_keys.get(prefix, ""), key)
    return last_keys


def _undated_prefix(key: str) -> str:
    at = 0
    for segment in key.split("/")[:-1]:
        if dated(segment) is not None:
            return key[:at] + label_of(segment)
        at += len(segment) + 1
    return ""


def week_years(day: date) -> set[int]:
    """Return the years of a day's week: by US weeks, which end on Saturday, and by ISO 8601."""
    saturday = day + timedelta(days=(5 - day.weekday()) % 7)
    return {saturday.year, day.isocalendar().year}


def _meanings(year: int, month: int, day: int) -> Iterator[date]:
    """Yield the possible days of a folder."""
    for candidate in (year, year - 1, year + 1):
        possible = _day(candidate, month, day)
        if possible and (candidate == year or year in week_years(possible)):
            yield possible


def _day(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None
