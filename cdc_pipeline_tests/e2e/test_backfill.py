"""Past days landed again from the best source that has them, compared with a journal of writes."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.changes import fold
from cdc_pipeline.core.errors import NotCoveredError
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.repair.backfill import BackfilledDay, backfill_days
from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.described_by_aws import filter_exports
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, make_world, quick_sandbox
from cdc_pipeline_tests.log_clock import set_log_clock

pytestmark = pytest.mark.slow
HOUR_US = 3_600_000_000
DAY = timedelta(days=1)
EXPORT = {"poll_seconds": 0.05, "least_window_minutes": 1 / 60}


@pytest.fixture
def kind() -> str:
    """A local lake unless a test says otherwise; one is in S3."""
    return "local"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxProcess]:
    """A sandbox of its own, for its clock is moved; windows of any length."""
    monkeypatch.setattr("cdc_pipeline.core.changes.write_times.clock", lambda: 4e9)
    with quick_sandbox() as process:
        yield process


class Story:
    """A table whose days are told: each write with the moment at which it was accepted."""

    def __init__(self, world: World, quick: SandboxProcess) -> None:
        self.world, self.quick = world, quick
        self.written: list[tuple[int, str, str | None]] = []
        self.first = self.today()

    def now_us(self) -> int:
        return control(self.quick.endpoint_url)["now_micros"]

    def today(self) -> date:
        return datetime.fromtimestamp(self.now_us() / 1e6, UTC).date()

    def go_to(self, day: date, hour: float) -> None:
        start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000
        control(self.quick.endpoint_url, stand_at=start + int(hour * HOUR_US))

    def put(self, pk: str, value: str) -> None:
        self.world.put("orders", pk, v={"S": value})
        self.written.append((self.now_us(), pk, value))

    def delete(self, pk: str) -> None:
        self.world.delete("orders", pk)
        self.written.append((self.now_us(), pk, None))

    def backfill(self, *days: date) -> list[BackfilledDay]:
        world = self.world
        return list(backfill_days(world.table_lake("orders"), days))

    def last_of(self, day: date) -> dict[str, str | None]:
        """What each item was left as by the last write of a day, the ones that came and went."""
        return {
            pk: value
            for at, pk, value in self.written
            if datetime.fromtimestamp(at / 1e6, UTC).date() == day
        }

    def landed(self, day: date | None = None) -> list[tuple[Any, ...]]:
        """Rows of the landing zone with all that orders and tells them."""
        where = f"WHERE CAST(time_stamp AS DATE) = '{day}'" if day else ""
        return self.world.rows(
            "SELECT json_extract_string(keys, '$.pk.S'), op, json_extract_string(data, '$.v'), "
            f"write_time_us, order_key, uuid, transport FROM orders.raw_stream {where} "
            "ORDER BY order_key, uuid",
            "orders",
        )

    def cdc(self) -> list[tuple[Any, ...]]:
        self.world.build_cdc("orders")
        return self.world.rows(
            "SELECT json_extract_string(keys, '$.pk.S'), op, json_extract_string(data, '$.v'), "
            "CAST(day AS VARCHAR) FROM orders.cdc ORDER BY order_key, uuid",
            "orders",
        )

    def state(self) -> dict[str, str]:
        rows = self.world.rows(
            "SELECT json_extract_string(_item, '$.pk.S'), json_extract_string(_item, '$.v.S') "
            "FROM orders.current_state",
            "orders",
        )
        assert len(rows) == len(dict(rows))
        return dict(rows)

    def true_state(self) -> dict[str, str]:
        items = {pk: value for _, pk, value in self.written}
        return {pk: value for pk, value in items.items() if value is not None}

    def objects(self, day: date) -> list[str]:
        state = self.world.table_lake("orders").log.load()
        return [landed.key for landed in state.objects_of_day(day.isoformat())]

    def lose(self, day: date, which: slice = slice(None)) -> list[str]:
        """Remove landing objects behind the log's back."""
        keys = self.objects(day)[which]
        assert keys
        self.world.lake().store.delete(keys)
        return keys

    def entries(self) -> int:
        return self.world.table_lake("orders").log.load().n

    def rebuilt(self) -> dict[str, str]:
        """The reference fold of the live baseline and everything that has landed since."""
        rows = self.world.rows("SELECT _key, _order_key, _item FROM orders.pitr_export", "orders")
        base = {key: fold.Row(order_key, item) for key, order_key, item in rows}
        staged = self.world.table_lake("orders").log.load().staged
        assert staged is not None
        changes = self.world.rows(
            "SELECT keys, order_key, new_image FROM orders.raw_stream "
            f"WHERE generation >= {staged.generation}",
            "orders",
        )
        return fold.items(fold.fold(base, (fold.KeyedChange(*row) for row in changes)))


@pytest.fixture
def story(
    quick: SandboxProcess, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> Story:
    """Three days before capture begins, the baseline on the fourth, two days behind it."""
    world = make_world(quick, tmp_path, kind)
    world.activate(monkeypatch)
    monkeypatch.setattr("cdc_pipeline.repair.incremental_export.WAIT_SECONDS", 0.2)

    def now() -> float:
        return control(quick.endpoint_url)["now_micros"] / 1_000_000

    set_log_clock(monkeypatch, now)
    world.make_table("orders")
    world.configure("orders", export={**EXPORT, "bucket": world.bucket})
    story = Story(world, quick)
    return story


def _tell(story: Story) -> list[date]:
    """Writes of six days; the objects of each captured day are several. Returns the days."""
    days = [story.first + number * DAY for number in range(1, 7)]
    for number, day in enumerate(days[:3]):
        story.go_to(day, 3)
        for pk in range(6):
            story.put(f"k{pk}", f"{number}-early")
        story.put(f"fleeting{number}", "came")
        story.delete(f"fleeting{number}")
        story.put(f"born{number}", "here")
        story.go_to(day, 20)
        for pk in range(0, 6, 2):
            story.put(f"k{pk}", f"{number}-late")
        if number:
            story.delete(f"born{number - 1}")
    story.go_to(days[3], 10)
    story.put("k1", "3-before")
    _bootstrap(story, days[3])
    for number, day in enumerate(days[3:], 3):
        for hour in (14, 17, 21):
            story.go_to(day, hour)
            for pk in range(hour % 5, 6):
                story.put(f"k{pk}", f"{number}-{hour}")
            story.put(f"of{number}-{hour}", "new")
            if hour == 17:
                story.delete(f"of{number}-14")
            capture(story)
    return days


def _bootstrap(story: Story, day: date) -> None:
    story.world.capture("orders")
    story.go_to(day, 10.1)
    story.world.snapshot("orders")
    story.go_to(day, 10.2)
    capture(story)
    story.world.publish("orders")


def capture(story: Story) -> None:
    """Everything written so far: the clock goes on for a second, so that all of it is past."""
    control(story.quick.endpoint_url, stand_at=story.now_us() + 2_000_000)
    story.world.capture("orders")


def _pass_days(story: Story, until: date) -> None:
    """Nobody writes; capture looks often enough to know that."""
    while story.today() < until:
        for hour in (1, 13):
            story.go_to(story.today() + (hour == 1) * DAY, hour)
            capture(story)


def _done(found: Sequence[BackfilledDay]) -> dict[date, tuple[int, list[str]]]:
    assert [str(f.error) for f in found if f.error] == []
    return {f.day: (f.added, f.sources) for f in found}


def test_days_before_capture_land_before_every_baseline(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = _tell(story)
    before = story.landed()
    with monkeypatch.context() as patch:
        filter_exports(patch)
        refused = story.backfill(*days[:3])
    assert all("is filtered, so" in str(found.error) for found in refused)
    assert story.landed() == before
    found = story.backfill(*days)
    done = _done(found)
    for number, day in enumerate(days[:3]):
        lasts = {k: v for k, v in story.last_of(day).items() if not k.startswith("fleeting")}
        rows = story.landed(day)
        if day < days[2]:
            assert {pk: value for pk, _, value, *_ in rows} == lasts, day
            assert len(rows) == len(lasts)
            assert done[day] == (len(lasts), ["export"])
        assert all(row[6] == "export" for row in rows if row[4].startswith("000000.")), number
    # Of the third day the stream still had the evening: nothing of it is there twice.
    mornings = [row for row in story.landed(days[2]) if row[6] == "export"]
    assert {row[0] for row in mornings} == {"k1", "k3", "k5", "born2"}
    assert all(done[day] == (0, []) for day in days[3:])
    assert [row for row in story.landed() if not row[4].startswith("000000.")] == before
    assert story.state() == story.true_state()
    story.world.publish("orders")
    assert story.state() == story.true_state()
    assert_mirrors(story.world, "orders")
    cdc = story.cdc()
    assert len(cdc) == len(story.landed())
    # A rerun: the same content, no further entry, no further export.
    landed, entries = story.landed(), story.entries()
    assert all(added == (0, []) for added in _done(story.backfill(*days)).values())
    assert (story.landed(), story.entries()) == (landed, entries)
    assert story.cdc() == cdc


def test_an_export_whose_files_are_gone_is_asked_for_anew(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS gives a killed run's export again for eight hours, whatever has become of its files."""
    day, *_ = _tell(story)

    def dies(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cdc_pipeline.repair.backfill._Backfill._fill", dies)
        with pytest.raises(KeyboardInterrupt):
            story.backfill(day)
    world, s3 = story.world, story.world.client("s3")
    before = world.dynamodb.list_exports()["ExportSummaries"]
    while any(export["ExportStatus"] == "IN_PROGRESS" for export in before):
        before = world.dynamodb.list_exports()["ExportSummaries"]
    for found in s3.list_objects_v2(Bucket=world.bucket)["Contents"]:
        if "/AWSDynamoDB/data/" in found["Key"]:
            s3.delete_object(Bucket=world.bucket, Key=found["Key"])
    assert [sources for _, sources in _done(story.backfill(day)).values()] == [["export"]]
    lasts = {k: v for k, v in story.last_of(day).items() if not k.startswith("fleeting")}
    assert {pk: value for pk, _, value, *_ in story.landed(day)} == lasts
    assert len(world.dynamodb.list_exports()["ExportSummaries"]) == len(before) + 1


def test_what_the_stream_still_has_is_landed_again_as_it_was(story: Story) -> None:
    days = _tell(story)
    before, today = story.landed(), days[5]
    lost = story.lose(today, slice(1, None))
    found = _done(story.backfill(*days[3:]))
    assert found[today][1] == ["stream"]
    assert found[days[4]] == (0, [])
    assert story.landed() == before
    assert not {*lost} & {*story.objects(today)}
    story.world.publish("orders")
    assert story.state() == story.true_state()
    assert _done(story.backfill(today)) == {today: (0, [])}
    assert story.landed() == before


# The last one loses a delete of an item whose insert, in the same window, survives.
@pytest.mark.parametrize(
    "which", [slice(None), slice(1, 2), slice(0, 2), slice(2, None), slice(0, 3, 2)]
)
def test_lost_objects_of_an_old_day_come_back_from_exports(story: Story, which: slice) -> None:
    days = _tell(story)
    before, day = story.landed(), days[3]
    _pass_days(story, days[5] + 2 * DAY)
    story.put("k0", "newest")
    capture(story)
    later = [row for row in story.landed() if row not in before]
    lost = story.lose(day, which)
    added, sources = _done(story.backfill(*days[3:]))[day]
    assert added > 0
    assert sources == ["export"]
    assert not {*lost} & {*story.objects(day)}
    # Nothing else has changed, and each item's last change of the day is there.
    after = story.landed()
    assert [row for row in after if row[6] not in ("export", "read")] == [
        row for row in before + later if row in after
    ]
    assert {pk: v for pk, _, v, *_ in story.landed(day)} == {
        pk: v for pk, v in story.last_of(day).items() if pk != "of3-14" or which != slice(None)
    } | ({} if which == slice(None) else {"of3-14": None})
    # A fold from the baseline finds the truth, whatever landed when; so does the published state.
    assert {_v(item) for item in story.rebuilt().items()} == {*story.true_state().items()}
    assert story.state() == story.true_state()
    story.world.publish("orders")
    assert_mirrors(story.world, "orders")
    cdc = story.cdc()
    assert len(cdc) == len(after)
    assert _done(story.backfill(day)) == {day: (0, [])}
    assert story.landed() == after


def _v(item: tuple[str, str]) -> tuple[str, str]:
    found = json.loads(item[1])
    return found["pk"]["S"], found["v"]["S"]


def test_days_that_nothing_covers(story: Story) -> None:
    days = _tell(story)
    ancient, future = story.first - 10 * DAY, days[5] + 3 * DAY
    found = {f.day: f for f in story.backfill(ancient, days[1], days[4], future)}
    assert [day for day, f in found.items() if f.error] == [ancient, future]
    assert found[days[1]].added > 0
    for day in (ancient, future):
        error = found[day].error
        assert isinstance(error, NotCoveredError)
        assert str(day) in error.message
    said = str(found[ancient].error)
    assert f"capture began at {days[3]}" in said
    assert f"reaches back to {story.first}" in said
    assert "Fix:" in said
    assert "has not begun" in str(found[future].error)


def test_a_quiet_day(story: Story) -> None:
    days = _tell(story)
    _pass_days(story, days[5] + 3 * DAY)
    quiet = days[5] + 2 * DAY
    (found,) = story.backfill(quiet)
    assert (found.error, found.rows, found.added) == (None, 0, 0)


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_killed_before_and_after_every_entry(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a run died of, the next one ends where an undisturbed one would."""

    class Killed(BaseException):
        pass

    days = _tell(story)
    before, kept = story.landed(), story.landed(days[5])
    story.lose(days[5], slice(1, None))
    real, kills = CaptureLog.append, 0
    for survived in (False, True) * 12:

        def append(log, state, entry, survived=survived):  # type: ignore[no-untyped-def]
            if survived:
                assert real(log, state, entry)
            raise Killed

        monkeypatch.setattr(CaptureLog, "append", append)
        try:
            story.backfill(*days)
            break
        except Killed:
            kills += 1
    monkeypatch.setattr(CaptureLog, "append", real)
    # Three days, the morning on which capture began, the lost objects: before and after each entry.
    assert kills == 10
    assert all(added == (0, []) for added in _done(story.backfill(*days)).values())
    assert story.landed(days[5]) == kept
    assert [row for row in story.landed() if not row[4].startswith("000000.")] == before
    for day in days[:2]:
        lasts = {k: v for k, v in story.last_of(day).items() if not k.startswith("fleeting")}
        rows = story.landed(day)
        assert {pk: value for pk, _, value, *_ in rows} == lasts
        assert len(rows) == len(lasts)
    assert story.state() == story.true_state()


def test_two_at_once_add_everything_once(story: Story) -> None:
    days = _tell(story)
    story.lose(days[3])
    story.lose(days[5], slice(1, None))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(story.backfill, *days) for _ in range(2)]
        done = [_done(future.result()) for future in both]
    rows = story.landed()
    assert len({row[5] for row in rows}) == len(rows)
    assert sum(added for one in done for added, _ in one.values()) > 0
    for day in days[:2]:
        assert sum(one[day][0] for one in done) == len(story.landed(day))
    assert {pk: v for pk, _, v, *_ in story.landed(days[3])} == {
        pk: v for pk, v in story.last_of(days[3]).items() if pk != "of3-14"
    }
    assert story.state() == story.true_state()
    assert {_v(item) for item in story.rebuilt().items()} == {*story.true_state().items()}
    files = {key for key in story.world.landing_files("orders") if "backfill-" in key}
    assert files <= {*story.world.lake().table(story.world.table("orders")).log.load().objects}


@pytest.mark.parametrize("heal", ["auto", "ask"])
def test_a_day_with_an_open_gap(story: Story, heal: str) -> None:
    days = _tell(story)
    orders = {"name": "orders", "heal": heal}
    story.world.configure(orders, export={**EXPORT, "bucket": story.world.bucket})
    for on in (False, True):
        specification: dict[str, Any] = {"StreamEnabled": on}
        if on:
            specification["StreamViewType"] = "NEW_AND_OLD_IMAGES"
        else:
            story.go_to(days[5], 22)
        story.world.dynamodb.update_table(TableName="orders", StreamSpecification=specification)
        if not on:
            story.put("k0", "while away")
            story.delete("k1")
    capture(story)
    _pass_days(story, days[5] + DAY)
    (found,) = story.backfill(days[5])
    assert found.error is None
    if heal == "ask":
        (note,) = found.notes
        assert "heal: ask" in note
        assert "cdc-pipeline heal orders" in note
        assert story.state() != story.true_state()
        return
    assert (found.notes, found.sources) == ([], ["heal"])
    assert story.state() == story.true_state()
    story.world.publish("orders")
    assert_mirrors(story.world, "orders")
