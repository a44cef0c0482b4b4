"""How far a page of Kinesis takes its shard, and how soon the next one may be asked for."""

from datetime import UTC, datetime

import msgspec
import pytest

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.cloudwatch import failed_to_replicate
from cdc_pipeline.aws.shards import Page
from cdc_pipeline.capture.sources.reading import KinesisProtocol, ReadTo
from cdc_pipeline.core.changes.ownership import Target

_SECOND = 1_000_000
_READING = KinesisProtocol(Target("orders", "T", {}), late_seconds=60)


def _page(records: int = 0, *, behind_ms: int | None = 0, size: int = 100) -> Page:
    return Page([msgspec.Raw(b'{"SequenceNumber":"1"}')] * records, "next", size, behind_ms)


def test_only_aws_tells_how_far_a_shard_is_read() -> None:
    asked = 1000 * _SECOND
    for records in (0, 3):
        reached = _READING.read_to(_page(records), [], asked, quiet_us=7)
        assert reached == ReadTo(asked, asked - 60 * _SECOND)
        behind = _READING.read_to(_page(records, behind_ms=5000), [], asked, quiet_us=7)
        assert behind == ReadTo(asked - 5 * _SECOND, asked - 65 * _SECOND)
    assert _READING.read_to(_page(behind_ms=None), [], asked, quiet_us=asked) == ReadTo(0, 0)
    assert _READING.read_to(_page(), [], 5 * _SECOND, quiet_us=0).written_us == 0


@pytest.mark.parametrize(
    ("page", "seconds"),
    [
        (_page(), 1),
        (_page(behind_ms=9), 0.2),  # an empty page on the way to the tip
        (_page(1), 0.2),
        (_page(1, size=(10 << 20) * 4 // 3), pytest.approx(5, abs=0.01)),
    ],
)
def test_the_pace_is_what_aws_allows(page: Page, seconds: float) -> None:
    assert _READING.pause(page, 1) == seconds


def test_what_is_late_is_in_no_listing_either() -> None:
    assert _READING.listing_lag_seconds(300) == 70
    assert _READING.listing_lag_seconds(0) == 60


@pytest.mark.parametrize(
    ("days", "period"), [(0.01, 60), (1, 60), (2, 3600), (60, 3600), (61, 7200), (365, 7 * 3600)]
)
def test_a_metric_is_asked_for_in_periods_that_cloudwatch_keeps(days: float, period: int) -> None:
    class Client:
        def get_metric_statistics(self, **asked: object) -> dict[str, object]:
            assert asked["Period"] == period
            begins = [datetime(2026, 11, 1, hour, tzinfo=UTC) for hour in (0, 1)]
            sums = zip(begins, (2.0, 1.0), strict=True)
            return {"Datapoints": [{"Timestamp": at, "Sum": n} for at, n in sums]}

    class Aws(AwsSession):
        def __init__(self) -> None:
            pass

        def client(self, service: str, region: str | None = None) -> Client:
            return Client()

    assert failed_to_replicate(Aws(), "orders", 0, int(days * 24 * 3600 * _SECOND)) == 3
