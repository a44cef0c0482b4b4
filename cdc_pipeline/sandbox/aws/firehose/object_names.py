"""Names of delivered objects: the expressions of prefixes, and the rest of the name.

Reference of AWS: "Amazon S3 object name format".
"""

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo


def evaluate_prefix(template: str, moment: datetime, *, error_type: str = "") -> str:
    """Return a prefix with its expressions evaluated; a prefix without a time gets one appended.

    Java's week-year YYYY, a frequent mistake, gives the year of the week.
    """

    def fill(match: re.Match[str]) -> str:
        kind, text = match.groups()
        if kind == "timestamp":
            return _java_time(text, moment)
        if text == "random-string":
            return uuid.uuid4().hex[:11]
        return error_type

    prefix = re.sub(r"!\{(timestamp|firehose):([^}]*)\}", fill, template)
    return prefix if "!{timestamp:" in template else f"{prefix}{moment:%Y/%m/%d/%H}/"


def _java_time(pattern: str, moment: datetime) -> str:
    # In the United States a week begins on Sunday, and belongs to the year of its last day.
    week_year = (moment + timedelta(days=6 - (moment.weekday() + 1) % 7)).year
    fields = {
        "yyyy": f"{moment:%Y}",
        "YYYY": str(week_year),
        "MM": f"{moment:%m}",
        "dd": f"{moment:%d}",
        "HH": f"{moment:%H}",
        "mm": f"{moment:%M}",
        "ss": f"{moment:%S}",
    }

    def fill(match: re.Match[str]) -> str:
        return match["quoted"] if match["quoted"] is not None else fields[match[0]]

    return re.sub(rf"'(?P<quoted>[^']*)'|{'|'.join(fields)}", fill, pattern)


def object_name(stream: dict[str, Any], moment: datetime) -> str:
    """Return a new object's name after its prefix."""
    return f"{stream['name']}-{stream['version']}-{moment:%Y-%m-%d-%H-%M-%S}-{uuid.uuid4()}"


def local_time(config: dict[str, Any], milliseconds: int) -> datetime:
    """Return a time since the epoch in the destination's time zone."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    zone = config.get("CustomTimeZone")
    return moment.astimezone(ZoneInfo(zone)) if zone else moment
