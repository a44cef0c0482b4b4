"""The landing zone in Glue: what is registered, brought up to date, repaired and projected."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.aws import glue as aws_glue
from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS, LandingColumn
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake import glue_partitions as lake_glue
from cdc_pipeline.lake.glue_partitions import find_repairs, register_days, registered_days, repair
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.store import LocalStore
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline_tests.lake.builder import LakeBuilder, change
from cdc_pipeline_tests.simulators.glue_server import GlueSimulator

NAME = "orders_raw_stream"
FIRST = date(2025, 12, 20)
_PROJECTED = {"projection": True}


@pytest.fixture
def glue(monkeypatch: pytest.MonkeyPatch) -> Iterator[GlueSimulator]:
    monkeypatch.setattr(aws_glue, "_PAUSE_SECONDS", 0.001)
    with GlueSimulator() as simulator:
        monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", simulator.endpoint_url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "simulator")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "simulator")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield simulator


def _built(folder: Path, **options: Any) -> LakeBuilder:
    """A lake that is in S3 for all that Glue is told; its objects lie in a folder."""
    raw = {
        "lake": "s3://bucket/prefix",
        "region": "eu-west-1",
        "start_date": "2025-12-01",
        "tables": [{"name": "orders"}],
        "glue": options,
    }
    settings = parse_settings(raw, folder / "settings.yaml")
    aws = AwsSession(region=settings.region)
    return LakeBuilder(Lake(settings, aws, LocalStore(folder / "lake")))


def _days(count: int) -> list[date]:
    return [FIRST + timedelta(days=n) for n in range(count)]


def _values(day: date) -> tuple[str, str, str]:
    return f"{day:%Y}", f"{day:%m}", f"{day:%d}"


def _folder(built: LakeBuilder, day: date) -> str:
    zone = built.table_lake.paths.landing
    return built.lake.store.uri(f"{zone}year={day:%Y}/month={day:%m}/day={day:%d}/")


def _expected(built: LakeBuilder, days: list[date]) -> dict[tuple[str, ...], tuple[str, Any]]:
    columns = [{"Name": c.name, "Type": c.type} for c in lake_glue.LANDING_COLUMNS]
    return {_values(day): (_folder(built, day), columns) for day in days}


def _registered(glue: GlueSimulator) -> dict[tuple[str, ...], tuple[str, Any]]:
    return {
        values: (one["StorageDescriptor"]["Location"], one["StorageDescriptor"]["Columns"])
        for values, one in glue.partitions[NAME].items()
    }


def _land_today(built: LakeBuilder) -> date:
    built.start()
    built.land([change("a", 1, {})])
    (landed,) = built.state.objects.values()
    return date.fromisoformat(landed.day)


def _grow(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = (*LANDING_COLUMNS, LandingColumn("colour", "string", "new"))
    monkeypatch.setattr(lake_glue, "LANDING_COLUMNS", grown)


def test_days_are_added_in_batches_and_only_once(tmp_path: Path, glue: GlueSimulator) -> None:
    built, days = _built(tmp_path), _days(250)
    assert register_days(built.table_lake, days[:120]) == days[:120]
    assert register_days(built.table_lake, days) == days[120:]
    assert _registered(glue) == _expected(built, days)
    sizes = [len(s["PartitionInputList"]) for c, s in glue.calls if c == "BatchCreatePartition"]
    assert sizes == [100, 20, 100, 100, 50]
    assert len(registered_days(built.table_lake)) == 250
    listings = [said for called, said in glue.calls if called == "GetPartitions"]
    assert len(listings) == 9
    assert all(said["ExcludeColumnSchema"] for said in listings)
    assert glue.count("UpdateTable") == 0


def test_a_refused_partition_stops_no_other(tmp_path: Path, glue: GlueSimulator) -> None:
    built, days = _built(tmp_path), _days(130)
    glue.fail(_values(days[3]), "InvalidInputException")
    glue.fail(_values(days[110]), "ResourceNumberLimitExceededException")
    with pytest.raises(LakeError) as raised:
        register_days(built.table_lake, days)
    said = str(raised.value)
    assert "2 partitions were rejected" in said
    assert f"{days[3]} (InvalidInputException" in said
    assert f"{days[110]} (ResourceNumberLimitExceededException" in said
    assert _registered(glue) == _expected(built, [d for d in days if d not in (days[3], days[110])])
    assert glue.count("BatchCreatePartition") == 2, "what will not pass is not tried again"


@pytest.mark.parametrize("code", ["ConcurrentModificationException", "ThrottlingException"])
def test_what_passes_is_tried_again(tmp_path: Path, glue: GlueSimulator, code: str) -> None:
    built, days = _built(tmp_path), _days(5)
    glue.fail(_values(days[1]), code, times=2)
    assert sorted(register_days(built.table_lake, days)) == days
    assert _registered(glue) == _expected(built, days)
    sizes = [len(s["PartitionInputList"]) for c, s in glue.calls if c == "BatchCreatePartition"]
    assert sizes == [5, 1, 1]

    glue.fail(_values(FIRST - timedelta(days=1)), code)
    with pytest.raises(LakeError, match=f"2025-12-19 \\({code}"):
        register_days(built.table_lake, [FIRST - timedelta(days=1)])


def test_new_columns_reach_the_table_and_every_partition(
    tmp_path: Path, glue: GlueSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _built(tmp_path)
    day = _land_today(built)
    register_days(built.table_lake, [day])
    glue.tables[NAME]["Parameters"]["owner"] = "somebody"
    glue.tables[NAME]["Description"] = "theirs"
    assert not find_repairs(built.table_lake)
    _grow(monkeypatch)
    assert str(find_repairs(built.table_lake)) == "table outdated, 1 outdated"
    assert repair(built.table_lake).outdated == [day]
    assert not find_repairs(built.table_lake)
    assert _registered(glue) == _expected(built, [day])
    table = glue.tables[NAME]
    assert table["StorageDescriptor"]["Columns"][-1] == {"Name": "colour", "Type": "string"}
    assert (table["Description"], table["Parameters"]["owner"]) == ("theirs", "somebody")
    ((_, update),) = [call for call in glue.calls if call[0] == "UpdateTable"]
    assert update["SkipArchive"]
    assert update["VersionId"] == "0"


def test_many_outdated_partitions_are_updated_in_batches(
    tmp_path: Path, glue: GlueSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, days = _built(tmp_path), _days(210)
    monkeypatch.setattr(lake_glue, "_landed_days", lambda *_: set(days))
    register_days(built.table_lake, days)
    _grow(monkeypatch)
    glue.fail(_values(days[7]), "InvalidInputException")
    with pytest.raises(LakeError, match="1 partitions were rejected: 2025-12-27"):
        repair(built.table_lake)
    sizes = [len(s["Entries"]) for c, s in glue.calls if c == "BatchUpdatePartition"]
    assert sizes == [100, 100, 10]
    assert find_repairs(built.table_lake).outdated == [days[7]]
    glue.item_errors.clear()
    repair(built.table_lake)
    assert _registered(glue) == _expected(built, days)


def test_a_partition_that_points_elsewhere_is_put_right(
    tmp_path: Path, glue: GlueSimulator
) -> None:
    built = _built(tmp_path)
    day = _land_today(built)
    register_days(built.table_lake, [day])
    glue.partitions[NAME][_values(day)]["StorageDescriptor"]["Location"] = "s3://old/place/"
    assert find_repairs(built.table_lake).outdated == [day]
    repair(built.table_lake)
    assert _registered(glue) == _expected(built, [day])


def test_another_writer_of_the_table_is_not_overwritten(
    tmp_path: Path, glue: GlueSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _built(tmp_path)
    register_days(built.table_lake, _days(1))

    def meanwhile() -> None:
        glue.tables[NAME]["Parameters"]["crawled"] = "yes"
        glue.tables[NAME]["VersionId"] = "7"

    glue.before_update.append(meanwhile)
    _grow(monkeypatch)
    register_days(built.table_lake, _days(1))
    table = glue.tables[NAME]
    assert table["Parameters"]["crawled"] == "yes"
    assert table["StorageDescriptor"]["Columns"][-1]["Name"] == "colour"
    assert [s["VersionId"] for c, s in glue.calls if c == "UpdateTable"] == ["0", "7"]


def test_the_partition_of_a_day_goes_when_its_folder_is_empty(
    tmp_path: Path, glue: GlueSimulator
) -> None:
    built = _built(tmp_path)
    day = _land_today(built)
    gone, foreign, elsewhere = _days(3)
    register_days(built.table_lake, [day, gone, foreign, elsewhere])
    theirs = Path(_folder(built, foreign)) / "made-by-an-older-lambda.parquet"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    storage = glue.partitions[NAME][_values(elsewhere)]["StorageDescriptor"]
    storage["Location"] = "s3://another/lake/"
    glue.partitions[NAME]["total", "x", "y"] = {"Values": ["total", "x", "y"], **_storage("s3://t")}
    assert find_repairs(built.table_lake).empty == [gone]
    repair(built.table_lake)
    kept = {_values(day), _values(foreign), _values(elsewhere), ("total", "x", "y")}
    assert glue.partitions[NAME].keys() == kept
    assert not find_repairs(built.table_lake)
    (landed,) = built.state.objects
    built.lake.store.delete([landed])  # damage, which `reconcile` is for
    assert not find_repairs(built.table_lake)


def _storage(location: str) -> dict[str, Any]:
    return {"StorageDescriptor": {"Location": location}}


def test_projection_goes_on_and_off(tmp_path: Path, glue: GlueSimulator) -> None:
    plain, projected = _built(tmp_path), _built(tmp_path, **_PROJECTED)
    day = _land_today(plain)
    register_days(plain.table_lake, [day])
    before = glue.tables[NAME]

    assert str(find_repairs(projected.table_lake)) == "table outdated"
    repair(projected.table_lake)
    assert not find_repairs(projected.table_lake)
    zone = plain.lake.store.uri(plain.table_lake.paths.landing)
    assert glue.tables[NAME]["Parameters"] == {
        **before["Parameters"],
        "projection.enabled": "true",
        "projection.year.type": "integer",
        "projection.year.range": f"2025,{datetime.now(UTC).year + 1}",
        "projection.year.digits": "4",
        "projection.month.type": "integer",
        "projection.month.range": "1,12",
        "projection.month.digits": "2",
        "projection.day.type": "integer",
        "projection.day.range": "1,31",
        "projection.day.digits": "2",
        "storage.location.template": zone + "year=${year}/month=${month}/day=${day}/",
    }
    glue.partitions[NAME].clear()
    assert register_days(projected.table_lake, [day]) == []
    assert glue.partitions[NAME] == {}
    assert not find_repairs(projected.table_lake)

    assert str(find_repairs(plain.table_lake)) == "table outdated, 1 missing"
    repair(plain.table_lake)
    assert glue.tables[NAME]["Parameters"] == before["Parameters"]
    assert _registered(glue) == _expected(plain, [day])


def test_projected_years_only_ever_move_apart(tmp_path: Path, glue: GlueSimulator) -> None:
    """A folder outside the range would be no rows and no error."""
    built, here = _built(tmp_path, **_PROJECTED), datetime.now(UTC).year + 1
    for day, expected in (
        (FIRST, f"2025,{here}"),
        (date(2019, 5, 1), f"2019,{here}"),
        (FIRST, f"2019,{here}"),
        (date(here + 5, 1, 1), f"2019,{here + 5}"),
        (FIRST, f"2019,{here + 5}"),
    ):
        register_days(built.table_lake, [day])
        assert glue.tables[NAME]["Parameters"]["projection.year.range"] == expected
