"""Times for people and for AWS."""

from datetime import UTC, date, datetime

from cdc_pipeline.core.clock import day_of, time_text, utc


def test_times_are_exact_and_text_is_rounded_down() -> None:
    time_us = 1_764_424_985_999_999
    assert utc(time_us) == datetime(2025, 11, 29, 14, 3, 5, 999_999, UTC)
    assert time_text(time_us) == "2025-11-29 14:03:05"
    assert day_of(1_764_460_799_999_999) == date(2025, 11, 29)
    assert day_of(1_764_460_800_000_000) == date(2025, 11, 30)
