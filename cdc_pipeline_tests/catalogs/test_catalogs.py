"""The same small story of a lake in every catalogue: what is published, seen, tagged, erased.

SQLite and S3 Tables are in `make test-slow`. The others are in `make test-catalogs`: they need Java
or PostgreSQL, or, as Glue, all end-to-end tests are in them.
"""

import itertools
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest

from cdc_pipeline.core.clock import day_of
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.plans.erasure import ItemTrace
from cdc_pipeline.erase.lake import erase_iceberg, erase_landed, erase_state_rows
from cdc_pipeline.erase.places import KEY_COLUMNS, find_item, lake_prefixes
from cdc_pipeline.lake.iceberg.tables import CommitConflictError
from cdc_pipeline.lake.publish.baselines import TAG, tag_baselines
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.lake.upkeep.verify import verify_files
from cdc_pipeline.sandbox.process import SandboxProcess, apply_environment
from cdc_pipeline.setup.checks.catalog_trial import NEEDED, TRIAL_TABLE, try_catalog
from cdc_pipeline.setup.checks.lake import check_lake
from cdc_pipeline.setup.permissions import build_policies
from cdc_pipeline_tests.catalogs import postgres, rest_server
from cdc_pipeline_tests.lake.builder import (
    MARGIN_US,
    START_US,
    LakeBuilder,
    change,
    plain_view,
)
from cdc_pipeline_tests.maven import Unavailable

_STATE = "SELECT _key, _item FROM orders.current_state ORDER BY _key"
_numbers = itertools.count()


@dataclass(frozen=True)
class Case:
    """A catalogue, and what it cannot do."""

    kind: str
    in_s3: bool = False
    forgets: bool = True
    places_tables: bool = True


SQLITE = Case("sqlite")
ELSEWHERE = Case("elsewhere", places_tables=False)
"""As S3 Tables, but that it does what it is told: SQLite with a place of its own for tables."""
POSTGRES = Case("postgres")
REST = Case("rest")
GLUE = Case("glue", in_s3=True)
# The emulator takes expiry and removal of refs and does neither; AWS's services do them.
GLUE_REST = Case("glue-rest", in_s3=True, forgets=False)
S3_TABLES = Case("s3tables", in_s3=True, forgets=False, places_tables=False)

_CASES = [
    *(pytest.param(c, id=c.kind, marks=pytest.mark.slow) for c in (SQLITE, ELSEWHERE, S3_TABLES)),
    *(
        pytest.param(c, id=c.kind, marks=pytest.mark.catalogs)
        for c in (GLUE, GLUE_REST, REST, POSTGRES)
    ),
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess() as process:
        yield process


@pytest.fixture(params=_CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def built(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[LakeBuilder]:
    monkeypatch.setattr("cdc_pipeline.lake.storage.store.os.fsync", lambda handle: None)
    with ExitStack() as stack:
        try:
            settings = _settings(case, tmp_path, monkeypatch, request, stack)
        except Unavailable as reason:
            pytest.skip(f"{case.kind}: {reason}")
        made = LakeBuilder.at(tmp_path, **settings)
        if case is ELSEWHERE:
            monkeypatch.setattr(
                "cdc_pipeline.lake.iceberg.catalog.chooses_location", lambda _: True
            )
            place = {"location": str(tmp_path / "elsewhere")}
            made.lake.iceberg.catalog.create_namespace(made.lake.database, place)
        yield made
        if case is POSTGRES:
            made.lake.iceberg.catalog.close()


def _settings(
    case: Case,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    stack: ExitStack,
) -> dict[str, Any]:
    if case is REST:
        uri = stack.enter_context(rest_server.running(folder))
        return {"catalog": {"type": "rest", "properties": {"uri": uri}}}
    if case is POSTGRES:
        monkeypatch.setenv("CATALOG_URI", stack.enter_context(postgres.running()))
        return {"catalog": {"type": "sql", "secrets": {"uri": "CATALOG_URI"}}}
    if not case.in_s3:
        return {}
    return _in_sandbox(case, monkeypatch, request.getfixturevalue("sandbox").endpoint_url)


def _in_sandbox(case: Case, monkeypatch: pytest.MonkeyPatch, endpoint_url: str) -> dict[str, Any]:
    wanted = dict(os.environ)
    apply_environment(wanted, endpoint_url)
    for name in set(os.environ) - set(wanted):
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    # One account: the emulator keeps the metadata of all in one bucket, which the first one owns.
    number, session = next(_numbers), boto3.Session()
    session.client("s3").create_bucket(Bucket=f"lake-{number}")
    chosen: dict[str, Any] = {"type": case.kind}
    if case is S3_TABLES:
        made = session.client("s3tables").create_table_bucket(name=f"tables-{number}")
        chosen["properties"] = {"warehouse": made["arn"]}
    lake = f"s3://lake-{number}/here"
    return {"lake": lake, "region": "us-east-1", "database": f"cdc{number}", "catalog": chosen}


def test_the_same_story_in_every_catalogue(built: LakeBuilder, case: Case) -> None:
    lake, table = built.lake, built.table
    built.start()
    built.stage({f"k{n}": {"n": {"N": str(n)}} for n in range(4)})
    built.land([change("k0", 5, {"n": {"N": "50"}}), change("k1", 6, None)])
    built.read_to(START_US + MARGIN_US + 10_000_000)
    publish_current_state(lake.table(table))
    _require_state(built)
    first = dict(built.items())
    at = datetime.fromtimestamp(START_US / 1e6 + 8, UTC)

    # Properties that the tables were created with are there, though the catalogue dropped them.
    state = lake.iceberg.load("orders_current_state")
    assert state is not None
    assert state.properties["commit.retry.num-retries"] == "0"
    assert lake.iceberg.is_placed(state) is case.places_tables

    # A commit on a version that is not the last one any more is refused, and nothing is changed.
    built.land([change("k2", 15, {"n": {"N": "1.50"}}), change("k9", 16, {"new": {"S": "x"}})])
    built.read_to(START_US + MARGIN_US + 20_000_000)
    publish_current_state(lake.table(table))
    _require_state(built)
    rows = pa.table({"_key": ["stolen"]}).to_reader()
    with pytest.raises(CommitConflictError):
        lake.iceberg.replace("orders_current_state", rows, {}, over=state)
    _require_state(built)

    day = day_of(START_US)
    assert build_cdc_day(lake.table(table), day).rows == 4
    built.land([change("k9", 17, {"new": {"S": "y"}})])
    assert build_cdc_day(lake.table(table), day).rows == 5
    assert len(plain_view(lake, "SELECT uuid FROM orders.cdc")) == 5

    # Two baselines, each with its tag, and the past told from the first.
    assert built.state.stream
    built.append(stream=replace(built.state.stream, generation=2))
    second = built.stage({"k7": {"n": {"N": "7"}}, "k8": {}}, generation=2)
    built.append(baseline=replace(second, export_time_us=START_US + 30_000_000))
    built.read_to(START_US + 60_000_000)
    tag_baselines(lake.table(table))
    snapshots = lake.iceberg.load("orders_snapshot")
    assert snapshots is not None
    assert {n for n in snapshots.metadata.refs if n != "main"} == {f"{TAG}1", f"{TAG}2"}
    publish_current_state(lake.table(table))
    _require_state(built)
    with connect_lake(lake, as_of=at) as connection:
        assert dict(connection.execute(_STATE).fetchall()) == first

    assert verify_files(lake.table(table), content=True).damages == []
    maintain_table(lake.table(table))
    _require_state(built)
    if case.forgets:
        _expire_all(built)
        _erase(built, "k7", case.places_tables)
        with connect_lake(lake, as_of=at) as connection:
            assert dict(connection.execute(_STATE).fetchall()) == first
    else:
        with pytest.raises(LakeError, match="did not expire snapshots as requested"):
            _expire_all(built)
        with pytest.raises(LakeError, match="did not expire snapshots as requested"):
            _erase(built, "k7", case.places_tables)


def _require_state(built: LakeBuilder) -> None:
    found = plain_view(built.lake, _STATE)
    assert {row["_key"]: row["_item"] for row in found} == built.items()
    state = built.lake.iceberg.load("orders_current_state")
    assert state is not None
    assert state.scan().to_arrow().num_rows == len(built.items())


def _expire_all(built: LakeBuilder) -> None:
    tables = built.lake.iceberg
    for kind in ("current_state", "snapshot", "cdc"):
        found = tables.load(f"orders_{kind}")
        assert found is not None
        tables.expire(found, datetime.now(UTC) + timedelta(days=1), ())
        again = tables.load(f"orders_{kind}")
        assert again is not None
        assert len(again.metadata.snapshots) == (2 if kind == "snapshot" else 1)


def _erase(built: LakeBuilder, name: str, places_tables: bool) -> None:
    lake, table = built.lake, built.table
    keys = plain_view(lake, f"SELECT _key FROM {table.safe_name}.current_state")
    (key,) = [row["_key"] for row in keys if f'"{name}"' in row["_key"]]
    trace = ItemTrace(key, key)
    holding = {found.place for found in find_item(lake_prefixes(lake.table(table)), trace)}
    assert {"current_state", "snapshot"} <= holding
    others = [*(lake.settings.lake_folder.parent / "elsewhere").rglob("*.parquet")]
    assert lake.settings.is_s3 or bool(others) is not places_tables
    erase_state_rows(lake.table(table), trace)
    erase_landed(lake.table(table).log, trace)
    for kind in KEY_COLUMNS:
        erase_iceberg(lake.table(table), kind, trace)
    assert all(path.exists() for path in others)  # they are not ours to remove
    assert find_item(lake_prefixes(lake.table(table)), trace) == []
    left = {row["_key"] for row in plain_view(lake, _STATE)}
    assert left == built.items().keys() - {key}


def test_preflight_tells_what_a_catalogue_cannot(built: LakeBuilder, case: Case) -> None:
    failed = set(try_catalog(built.lake).failed)
    if case.forgets:
        assert failed == (set() if case.places_tables else {"location"})
        assert list(built.lake.store.list("iceberg/")) == []
        return
    others = set() if case.places_tables else {"location", "created_properties"}
    assert failed == {"untag", "expiry", "drop", *others}
    again = try_catalog(built.lake).failed  # on the table that stayed
    assert "drop" in again
    assert not NEEDED.keys() & again.keys()


def test_preflight_has_a_word_on_the_catalogue_and_on_who_expires_baselines(
    built: LakeBuilder, case: Case
) -> None:
    if case in (SQLITE, ELSEWHERE, GLUE):
        pytest.skip("preflight checks a file or Glue itself by other findings; e2e/test_preflight")
    findings = {f.check: f for f in check_lake(built.table_lake)}
    assert findings["catalogue"].green, findings["catalogue"].found
    assert ("does not expire snapshots" in findings["catalogue"].found) is not case.forgets
    assert ("glue" in findings) is case.in_s3
    if case.in_s3:
        allowed = str(build_policies(built.lake, [built.table], account="1" * 12).pipeline)
        assert ("s3tables:PutTableData" in allowed) is (case is S3_TABLES)
        assert (TRIAL_TABLE in allowed) is (case is GLUE_REST)
    if case is not S3_TABLES:
        return
    assert findings["baselines"].green
    built.start()
    built.stage({"k1": {}})
    red = {f.check: f for f in check_lake(built.table_lake)}["baselines"]
    assert "orders_snapshot" in red.found
    assert red.fix is not None
    arguments = shlex.split(red.fix.partition("; do ")[2].partition("; done")[0])
    said = dict(itertools.pairwise(arguments))
    built.lake.aws.client("s3tables").put_table_maintenance_configuration(
        tableBucketARN=said["--table-bucket-arn"],
        namespace=said["--namespace"],
        name="orders_snapshot",
        type=said["--type"],
        value=json.loads(said["--value"]),
    )
    assert {f.check: f for f in check_lake(built.table_lake)}["baselines"].green
