"""Lines for people: each error, gap and warning once, until it is over."""

from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.run import Captured, Failed, Landed, Unregistered
from cdc_pipeline.core.errors import LakeError, SourceError
from cdc_pipeline.core.log.entries import Gap
from cdc_pipeline.service.news import News
from cdc_pipeline.service.server import NotPublished
from cdc_pipeline.settings.table import Table

_TABLE = Table.model_validate({"name": "orders"})


def test_an_error_is_told_once_and_again_after_a_success() -> None:
    news, failed = News(), Failed(_TABLE, SourceError("its stream is off", fix="turn it on"))
    assert [*news.of(failed)] == ["its stream is off. Fix: turn it on"]
    assert [*news.of(failed)] == []
    assert [*news.of(Failed(_TABLE, SourceError("another")))] == ["another"]
    assert [*news.of(Captured(_TABLE, CaptureResult("orders")))] == []
    assert [*news.of(failed)] == ["its stream is off. Fix: turn it on"]


def test_gaps_and_warnings_are_never_silent() -> None:
    news = News()
    result = CaptureResult("orders", warnings=["the clock is off"])
    result.gaps.append(Gap("trimmed", ("shard",), 0, 60_000_000, 2))
    gap, warning = news.of(Captured(_TABLE, result))
    assert "1970-01-01 00:00:00 to 1970-01-01 00:01:00 UTC may be missing" in gap
    assert gap.endswith("Fix: cdc-pipeline heal orders")
    assert warning == "the clock is off"
    assert [*news.of(Captured(_TABLE, CaptureResult("orders", warnings=[warning])))] == []


def test_what_is_not_published_or_registered_is_told() -> None:
    news = News()
    assert [*news.of(NotPublished(_TABLE, LakeError("no")))] == ["not published: no"]
    unregistered = Unregistered(_TABLE, LakeError("no Glue"))
    assert [*news.of(unregistered)] == ["no Glue"]
    assert [*news.of(unregistered)] == []
    assert [*news.of(Landed(_TABLE, []))] == []
