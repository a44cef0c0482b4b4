"""ExportTableToPointInTime requests: parameters, and the rules for their times.

Codes and messages of refused windows are those of AWS, as recorded by the project ack-api-quirks
in October 2026 (DDB-EXPORT-001 to -004, -019) and in apache/airflow pull request 41517. Comments
mark messages without such a record.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdc_pipeline.sandbox.aws.dynamodb.recovery import Recovery
from cdc_pipeline.sandbox.aws.dynamodb.responses import RefusedError

FULL = "FULL_EXPORT"
INCREMENTAL = "INCREMENTAL_EXPORT"
NEW_IMAGE = "NEW_IMAGE"
NEW_AND_OLD_IMAGES = "NEW_AND_OLD_IMAGES"

_SECOND = 1_000_000
_MOST_WINDOW_HOURS = 24
_VIEWS = (NEW_IMAGE, NEW_AND_OLD_IMAGES)


@dataclass(frozen=True, slots=True)
class Window:
    """Window of an incremental export: writes in [start, end), µs since the epoch."""

    start: int
    end: int
    view: str

    def described(self) -> dict[str, Any]:
        """Return the IncrementalExportSpecification for descriptions."""
        return {
            "ExportFromTime": self.start / _SECOND,
            "ExportToTime": self.end / _SECOND,
            "ExportViewType": self.view,
        }


def check_parameters(data: dict[str, Any]) -> None:
    """Refuse a request with invalid parameters, independent of its table."""
    for name in ("TableArn", "S3Bucket"):
        if not data.get(name):
            raise _invalid(f"{name} must not be null or empty")
    _check_member("exportFormat", data.get("ExportFormat"), ("DYNAMODB_JSON", "ION"))
    _check_member("exportType", data.get("ExportType"), (INCREMENTAL, FULL))
    if data.get("ExportFormat") == "ION":
        raise _invalid("The sandbox exports in DYNAMODB_JSON only, not in ION")
    if data.get("FilterSpecification"):
        raise _invalid("FilterSpecification is not supported by the sandbox")
    _check_specification(data, data.get("IncrementalExportSpecification"))


def _check_specification(data: dict[str, Any], specification: dict[str, Any] | None) -> None:
    kind = data.get("ExportType")
    if specification is None:
        if kind == INCREMENTAL:
            raise _invalid(
                "Invalid Request: Incremental Export Specification expected when export type is "
                "set as Incremental Export"
            )
        return
    if kind is None:
        raise _invalid(
            "Invalid Request: Export Type expected to be Incremental Export when incremental "
            "export specification is provided"
        )
    if kind == FULL:
        raise _invalid(
            "Invalid Request: When Export Type is Full Export , Incremental Export Specification "
            "should not be provided"
        )
    view = specification.get("ExportViewType")
    _check_member("incrementalExportSpecification.exportViewType", view, _VIEWS)
    if specification.get("ExportFromTime") is None:
        raise _invalid(
            "Invalid Request: ExportFromTime must be provided in IncrementalExportSpecification"
        )
    if data.get("ExportTime") is not None:
        raise _invalid("Invalid Request: ExportTime is not allowed in an incremental export")


def _check_member(place: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise _invalid(
            f"1 validation error detected: Value '{value}' at '{place}' failed to satisfy "
            f"constraint: Member must satisfy enum value set: [{', '.join(allowed)}]"
        )


def full_export_micros(
    recovery: Recovery, table: dict[str, Any], requested: float | str | None, now: int
) -> int:
    """Return the time of a full export in µs; refuses one outside the recovery window.

    Unlike a window it may be as late as now: a test suite that passes against AWS
    (scylladb/scylladb, test/alternator/test_export.py) requests the current second.
    """
    earliest = recovery.earliest(table)
    if requested is None:
        # Whole milliseconds, as reported: the content is the state at the reported time. Directly
        # after enabling recovery there is no such time yet.
        return max(now // 1000 * 1000, earliest)
    micros = _micros("ExportTime", requested)
    if not earliest <= micros <= now:
        raise _bad_time(
            f"ExportTime {iso(micros)} is not between EarliestRestorableDateTime "
            f"{iso(earliest)} and the present {iso(now)}"
        )
    return micros


def export_window(
    recovery: Recovery,
    table: dict[str, Any],
    specification: dict[str, Any],
    now: int,
    *,
    least_seconds: float,
) -> Window:
    """Return the window of an incremental export; refuses in the same order as AWS."""
    start = _micros("ExportFromTime", specification["ExportFromTime"])
    requested = specification.get("ExportToTime")
    # AWS uses the second of the request, not LatestRestorableDateTime (DDB-EXPORT-019).
    end = now // _SECOND * _SECOND if requested is None else _micros("ExportToTime", requested)
    if start < table["CreationDateTime"] * _SECOND:
        raise _bad_time(
            "Incremental export period from time cannot be less than the table creation time : "
            f"{_iso_seconds(start)}"
        )
    recovery.journal(table)
    if end > now:
        raise _bad_time(
            "Incremental export period to time cannot be greater than the current time : "
            f"{_iso_seconds(end)}"
        )
    _check_length(start, end, least_seconds)
    _check_restorable(recovery, table, start, end if requested is not None else None)
    return Window(start, end, specification.get("ExportViewType", NEW_AND_OLD_IMAGES))


def _check_length(start: int, end: int, least_seconds: float) -> None:
    if start >= end:
        raise _bad_time(
            "Incremental export period from time should not be greater or equal to incremental "
            "export period to time"
        )
    difference = "Difference between export period from time and export period to time is"
    if end - start < least_seconds * _SECOND:
        raise _bad_time(f"{difference} less than {_duration(least_seconds)}")
    if end - start > _MOST_WINDOW_HOURS * 3600 * _SECOND:
        # Wording of this project: there is no record of AWS's.
        raise _bad_time(f"{difference} greater than {_MOST_WINDOW_HOURS} hours")


def _check_restorable(
    recovery: Recovery, table: dict[str, Any], start: int, end: int | None
) -> None:
    """Refuse times outside of recovery; AWS may accept more, see docs/sandbox.md.

    The message is AWS's for full exports (DDB-EXPORT-001).
    """
    if start < recovery.earliest(table) or (end is not None and end > recovery.latest(table)):
        raise _bad_time("Point in Time Recovery is not available for specified export time")


def iso(micros: int) -> str:
    """Return a time in the format of manifests, such as `2026-01-14T10:35:24.000Z`."""
    return f"{_iso_seconds(micros)[:-1]}.{micros // 1000 % 1000:03d}Z"


def _iso_seconds(micros: int) -> str:
    return f"{datetime.fromtimestamp(micros // _SECOND, tz=UTC):%Y-%m-%dT%H:%M:%SZ}"


def _micros(name: str, moment: float | str) -> int:
    """Return a time of a request (epoch seconds or ISO text) in µs since the epoch."""
    if isinstance(moment, str):
        try:
            parsed = datetime.fromisoformat(moment)
        except ValueError:
            raise _invalid(f"{name} is not a time: {moment}") from None
        moment = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    return round(moment * 1000) * 1000


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"


def _invalid(message: str) -> RefusedError:
    return RefusedError("ValidationException", message)


def _bad_time(message: str) -> RefusedError:
    return RefusedError("InvalidExportTimeException", message)
