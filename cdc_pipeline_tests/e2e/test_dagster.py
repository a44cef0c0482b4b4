"""The Dagster layer on a real instance: what is defined, runs, sensors, schedules, automation."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.defs.build import build_definitions
from cdc_pipeline.sandbox.demo.traffic import create_tables, seed
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.settings.load import PATH_VARIABLE, load_settings
from cdc_pipeline_tests.e2e.deployment import (
    Deployment,
    deploy,
    failure,
    materializations,
    metadata,
    requested_tables,
    today,
)
from cdc_pipeline_tests.e2e.described_by_aws import make_global
from cdc_pipeline_tests.e2e.wire import spoil
from cdc_pipeline_tests.e2e.world import ORDERS_AND_CUSTOMERS, World, make_world

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]

ORDERS, CUSTOMERS = 60, 12
REPAIR = "repair_glue_partitions"


@pytest.fixture
def kind() -> str:
    """Glue is part of it, so the lake is in S3 unless a test says otherwise."""
    return "s3"


@pytest.fixture
def table(world: World) -> str:
    name = world.make_table("things")
    world.configure(name)
    return name


@pytest.fixture
def deployment(world: World, table: str) -> Iterator[Deployment]:
    with deploy(world) as made:
        yield made


@pytest.fixture(scope="module")
def shop(
    sandbox: SandboxProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, dict[str, Any]]]:
    """Orders and customers, every asset materialised once through the implicit job."""
    world = make_world(sandbox, tmp_path_factory.mktemp("shop"), "local")
    with pytest.MonkeyPatch.context() as monkeypatch:
        world.activate(monkeypatch)
        world.configure(*ORDERS_AND_CUSTOMERS)
        create_tables(world.dynamodb)
        seed(world.dynamodb, orders=ORDERS, customers=CUSTOMERS)
        with deploy(world) as made:
            results: dict[str, Any] = {}
            for name in ("customers", "orders"):
                results[f"{name}/pitr_export"] = made.materialize(name, "pitr_export")
                time.sleep(1.1)  # the handover margin
                results[f"{name}/raw_stream"] = made.materialize(name, "raw_stream", day=today())
                results[f"{name}/cdc"] = made.materialize(name, "cdc", day=today())
                results[f"{name}/current_state"] = made.materialize(name, "current_state")
            value, revenue = "customer_lifetime_value", "order_revenue_by_country"
            results[f"aggregates/{value}"] = made.materialize("aggregates", value)
            results[f"aggregates/{revenue}"] = made.materialize(
                "aggregates", revenue, day=today() - timedelta(days=3)
            )
            yield made, results


def test_loading_is_quick_and_touches_no_network(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"table-{number:02d}" for number in range(30)]
    path = world.configure(*names)

    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    started = time.process_time()
    defs = build_definitions(load_settings(path), path)
    keys = defs.resolve_all_asset_keys()
    seconds = time.process_time() - started
    assert len(keys) == 30 * 5 + 3  # maintenance, and two aggregates that wait for their tables
    assert seconds < 5, f"30 tables took {seconds:.1f} s of CPU to load"


def test_definitions_validate(world: World, table: str) -> None:
    """With a settings file, without one, and with a broken one; side by side to save time."""
    broken = world.folder / "broken.yaml"
    broken.write_text("lake: ./lake\ntables:\n  - name: orders\n    owner: nobody\ntabels: []\n")
    command = [str(Path(sys.executable).with_name("dagster")), "definitions", "validate"]
    environment = world.environment({"PATH": "/usr/bin:/bin"})
    started: dict[str, subprocess.Popen[str]] = {}
    for label, path in (
        ("sound", world.settings_path),
        ("missing", world.folder / "none.yaml"),
        ("broken", broken),
    ):
        # A home of its own: three processes that create one SQLite file get in each other's way.
        home = world.folder / label
        home.mkdir()
        started[label] = subprocess.Popen(
            [*command, "-m", "cdc_pipeline.definitions"],
            env=environment | {PATH_VARIABLE: str(path), "DAGSTER_HOME": str(home)},
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    said = {label: process.communicate(timeout=60)[0] for label, process in started.items()}
    codes = {label: process.returncode for label, process in started.items()}
    assert codes == {"sound": 0, "missing": 0, "broken": 1}, said
    assert "All code locations passed validation" in said["sound"]
    assert "make demo" in said["missing"]
    assert "none.yaml" in said["missing"]
    assert str(broken) in said["broken"]
    assert "tabels: unknown key; allowed: lake," in said["broken"]
    assert "tables.0.owner: found 'nobody'" in said["broken"]
    frames = re.findall(r'File "[^"]*cdc_pipeline/(\w+)', said["broken"])
    assert set(frames) <= {"definitions"}, "frames of our code say nothing to who wrote the file"


def test_what_is_defined(world: World) -> None:
    """All names that dashboards, permissions and people rely on; a change here is on purpose."""
    owned = {"name": "Orders-V2", "owner": "team:sales", "snapshot": {"schedule": "0 3 1 * *"}}
    path = world.configure(owned, {"name": "customers", "group": "crm"}, aggregates="none")
    defs = build_definitions(load_settings(path), path)
    specs = {
        spec.key.to_user_string(): (spec.group_name, list(spec.owners), sorted(spec.kinds))
        for spec in defs.resolve_all_asset_specs()
    }
    expected = {}
    tables = (("orders_v2", "orders_v2", ["team:sales"]), ("customers", "crm", []))
    for name, group, owners in tables:
        expected |= {
            f"{name}/dynamodb": (group, owners, ["dynamodb"]),
            f"{name}/pitr_export": (group, owners, ["dynamodb", "iceberg", "s3"]),
            f"{name}/raw_stream": (group, owners, ["dynamodb", "parquet"]),
            f"{name}/cdc": (group, owners, ["duckdb", "iceberg"]),
            f"{name}/current_state": (group, owners, ["duckdb", "iceberg"]),
        }
    expected["maintenance"] = ("lake", [], ["iceberg"])
    assert specs == expected
    assert {spec.description is not None for spec in defs.resolve_all_asset_specs()} == {True}
    repository = defs.get_repository_def()
    jobs = {job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    assert jobs == {"capture", "heal", "reconcile", "refresh_yesterday", REPAIR}
    sensors = {s.name: s.default_status.value for s in repository.sensor_defs}
    assert sensors == {
        name: "STOPPED"
        for name in (
            "shard_sensor",
            "gap_sensor",
            "glue_partition_sensor",
            "downstream",
            "alarm_sensor",
            "run_failure_alarm",
        )
    }
    schedules = {s.name: (s.cron_schedule, s.execution_timezone) for s in repository.schedule_defs}
    assert schedules == {
        "yesterday": ("20 0 * * *", "UTC"),
        "orders_v2_export": ("0 3 1 * *", "UTC"),
        "maintain": ("41 * * * *", "UTC"),
        "reconcile": ("23 4 * * *", "UTC"),
    }
    graph = defs.resolve_asset_graph()
    deps = {
        node.key.to_user_string(): sorted(k.to_user_string() for k in node.parent_keys)
        for node in graph.asset_nodes
        if node.key.path[0] == "customers"
    }
    assert deps == {
        "customers/dynamodb": [],
        "customers/pitr_export": ["customers/dynamodb"],
        "customers/raw_stream": ["customers/dynamodb"],
        "customers/cdc": ["customers/raw_stream"],
        "customers/current_state": ["customers/pitr_export", "customers/raw_stream"],
    }
    checks = {key.to_user_string() for key in graph.asset_check_keys}
    assert {check for check in checks if check.startswith("customers")} == {
        "customers/raw_stream:no_quarantined_records",
        "customers/raw_stream:no_open_gaps",
        "customers/raw_stream:retention_budget",
        "customers/raw_stream:watermark_holds",
        "customers/cdc:unbroken_chain",
        "customers/current_state:columns_for_all_attributes",
        "customers/current_state:fresh",
        "customers/current_state:type_conflicts",
        "customers/dynamodb:export_verified",
        "customers/dynamodb:sample_matches_source",
    }
    # Days include today, in UTC.
    cdc = defs.resolve_assets_def(dg.AssetKey(["customers", "cdc"]))
    assert cdc.partitions_def is not None
    assert cdc.partitions_def.get_last_partition_key() == today().isoformat()


def test_sensors_and_schedules_run_by_themselves_when_told_to(world: World) -> None:
    path = world.configure("things", schedules={"running": True})
    repository = build_definitions(load_settings(path), path).get_repository_def()
    statuses = {d.name: d.default_status.value for d in repository.sensor_defs}
    statuses |= {d.name: d.default_status.value for d in repository.schedule_defs}
    assert set(statuses.values()) == {"RUNNING"}


def test_a_baseline_of_a_global_table_says_so(
    deployment: Deployment, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.world.put(table, "a")
    result = deployment.materialize(table, "pitr_export")
    assert "global_table" not in metadata(result, table, "pitr_export")
    make_global(monkeypatch)
    result = deployment.materialize(table, "pitr_export")
    note = metadata(result, table, "pitr_export")["global_table"]
    assert note.startswith("global, with eu-west-1: of changes made there, history may lack")


def test_every_asset_materialises_and_tells_numbers(
    shop: tuple[Deployment, dict[str, Any]],
) -> None:
    _, results = shop
    assert [label for label, result in results.items() if not result.success] == []
    for name, items in (("orders", ORDERS), ("customers", CUSTOMERS)):
        reported = {
            asset: metadata(results[f"{name}/{asset}"], name, asset)
            for asset in ("pitr_export", "raw_stream", "cdc", "current_state")
        }
        assert reported["pitr_export"]["dagster/row_count"] == items
        assert reported["pitr_export"]["files"] >= 1
        assert reported["pitr_export"]["bytes"] > 0
        assert reported["raw_stream"]["dagster/partition_row_count"] == items
        assert reported["raw_stream"]["rows_landed"] == items
        assert reported["raw_stream"]["lag_seconds"] >= 0
        assert reported["raw_stream"]["unreadable"] == 0
        assert reported["cdc"]["dagster/partition_row_count"] == items
        assert reported["cdc"]["duplicates_removed"] == 0
        assert reported["current_state"]["dagster/row_count"] == items
        assert reported["current_state"]["changes_folded"] == items
        assert reported["current_state"]["lag_seconds"] >= 0
        columns = reported["current_state"]["dagster/column_schema"].columns
        assert {"_key", "_item", "customer_id"} <= {column.name for column in columns}
        assert all(asset["seconds"] >= 0 for asset in reported.values())
        checks = results[f"{name}/raw_stream"].get_asset_check_evaluations()
        assert checks
        assert all(check.passed for check in checks)
    for aggregate in ("customer_lifetime_value", "order_revenue_by_country"):
        told_of = metadata(results[f"aggregates/{aggregate}"], "aggregates", aggregate)
        assert told_of["dagster/row_count"] > 0


def test_a_quiet_day_is_a_success_without_rows(shop: tuple[Deployment, dict[str, Any]]) -> None:
    made, _ = shop
    result = made.materialize("orders", "cdc", day=today() - timedelta(days=20))
    assert result.success
    assert metadata(result, "orders", "cdc")["dagster/partition_row_count"] == 0


def test_a_backfill_of_five_days_is_one_run(shop: tuple[Deployment, dict[str, Any]]) -> None:
    made, _ = shop
    days = [(today() - timedelta(days=back)).isoformat() for back in range(4, -1, -1)]
    before = made.world.rows("SELECT count(*) FROM orders.cdc", "orders")
    result = made.materialize(
        "orders",
        "cdc",
        tags={
            "dagster/asset_partition_range_start": days[0],
            "dagster/asset_partition_range_end": days[-1],
        },
    )
    assert result.success
    reported = {str(m.partition): m.metadata for m in materializations(result)}
    assert sorted(reported) == days
    counts = [reported[day]["dagster/partition_row_count"].value for day in days]
    assert counts == [0, 0, 0, 0, ORDERS]
    assert made.world.rows("SELECT count(*) FROM orders.cdc", "orders") == before


def test_current_state_before_any_export(deployment: Deployment, table: str) -> None:
    deployment.world.put(table, "a")
    assert deployment.materialize(table, "raw_stream", day=today()).success
    said = failure(deployment.materialize(table, "current_state"))
    assert f"materialise {table}/pitr_export first" in said
    assert table in said


def test_raw_stream_of_a_day_before_capture_began(deployment: Deployment, table: str) -> None:
    day = today() - timedelta(days=7)
    said = failure(deployment.materialize(table, "raw_stream", day=day))
    assert f"{table}/raw_stream {day}" in said
    assert "capture began" in said
    assert "Fix:" in said


def test_days_that_nothing_covers_do_not_stop_the_others(
    deployment: Deployment, table: str
) -> None:
    deployment.world.put(table, "a")
    days = [today() - timedelta(days=back) for back in range(3, -1, -1)]
    tags = {
        "dagster/asset_partition_range_start": days[0].isoformat(),
        "dagster/asset_partition_range_end": days[-1].isoformat(),
    }
    result = deployment.materialize(table, "raw_stream", tags=tags)
    said = failure(result)
    for day in days[:2]:
        assert f"{table}/raw_stream {day}: nothing covers {day}" in said
    reported = {str(m.partition): m.metadata for m in materializations(result)}
    rows = {day: m["dagster/partition_row_count"].value for day, m in reported.items()}
    assert rows == {days[2].isoformat(): 0, days[3].isoformat(): 1}


def test_capture_logs_one_materialisation_per_day(
    deployment: Deployment, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written_yesterday(record: dict[str, Any]) -> None:
        record["dynamodb"]["ApproximateCreationDateTime"] -= 86_400

    for name in ("late", "late too", "new"):
        deployment.world.put(table, name)
    spoil(monkeypatch, {"late": written_yesterday, "late too": written_yesterday})
    result = deployment.run_job("capture")
    assert result.success
    found = {m.partition: m for m in materializations(result)}
    assert len(found) == len(materializations(result)) == 2
    assert {m.asset_key for m in found.values()} == {dg.AssetKey([table, "raw_stream"])}
    rows = {day: m.metadata["rows_landed"].value for day, m in found.items()}
    assert rows == {(today() - timedelta(days=1)).isoformat(): 2, today().isoformat(): 1}
    for landed in found.values():
        assert {"bytes", "lag_seconds", "entry", "shards"} <= landed.metadata.keys()
    again = deployment.run_job("capture")
    assert again.success
    assert materializations(again) == [], "nothing new, nothing said"


def test_shard_sensor_never_captured_then_captured(deployment: Deployment, table: str) -> None:
    assert requested_tables(deployment.tick("shard_sensor")) == [table]
    assert deployment.run_job("capture").success
    tick = deployment.tick("shard_sensor")
    assert not tick.run_requests
    assert re.search(rf"{table}: captured \d+ s ago \(every 5 s\), 1 shards", tick.skip_message)
    time.sleep(5)
    assert requested_tables(deployment.tick("shard_sensor")) == [table], "its interval has passed"


def test_shard_sensor_leaves_runs_in_flight_alone(deployment: Deployment, table: str) -> None:
    job = deployment.defs.resolve_job_def("capture")
    config = {"ops": {"capture_streams": {"config": {"tables": [table]}}}}
    run = deployment.instance.create_run_for_job(
        job, run_config=config, status=dg.DagsterRunStatus.STARTED
    )
    tick = deployment.tick("shard_sensor")
    assert not tick.run_requests
    assert run.run_id[:8] in tick.skip_message
    deployment.instance.report_run_failed(run)
    tick = deployment.tick("shard_sensor")
    assert requested_tables(tick) == [table]
    assert tick.run_requests[0].run_key is None, "a run key would keep a failed run from repeating"


def test_a_failed_capture_says_why_and_is_left_alone_until_it_succeeds(world: World) -> None:
    """One table that cannot be reached neither hides nor stops the others."""
    sound = world.make_table("sound")
    world.configure("missing", sound)
    world.put(sound, "a")
    with deploy(world) as made:
        assert sorted(requested_tables(made.tick("shard_sensor"))) == ["missing", sound]
        result = made.run_job("capture")
        said = failure(result)
        assert "missing" in said
        assert "check the name" in said
        assert [m.asset_key.path for m in materializations(result)] == [[sound, "raw_stream"]]
        assert "missing" not in requested_tables(made.tick("shard_sensor"))
        world.make_table("missing")
        world.capture("missing")
        world.dynamodb.delete_table(TableName="missing")
        time.sleep(5)
        assert sorted(requested_tables(made.tick("shard_sensor"))) == ["missing", sound]


def test_a_lost_glue_partition_comes_back(deployment: Deployment, table: str) -> None:
    world = deployment.world
    world.put(table, "a")
    assert deployment.run_job("capture").success
    tick = deployment.tick("glue_partition_sensor")
    assert not tick.run_requests
    assert "0 missing" in tick.skip_message
    glue = world.client("glue")
    where = {"DatabaseName": "cdc", "TableName": f"{table}_raw_stream"}
    (partition,) = glue.get_partitions(**where)["Partitions"]
    assert "-".join(partition["Values"]) == today().isoformat()
    glue.delete_partition(**where, PartitionValues=partition["Values"])
    (request,) = deployment.tick("glue_partition_sensor").run_requests
    assert deployment.defs.resolve_sensor_def("glue_partition_sensor").job_name == REPAIR
    assert deployment.run_job(REPAIR, request.run_config).success
    (repaired,) = glue.get_partitions(**where)["Partitions"]
    assert repaired["Values"] == partition["Values"]
    assert repaired["StorageDescriptor"] == partition["StorageDescriptor"]
    assert not deployment.tick("glue_partition_sensor").run_requests

    glue.delete_partition(**where, PartitionValues=partition["Values"])
    config = {"ops": {"register_partitions": {"config": {"tables": ["nothing", table]}}}}
    assert not deployment.run_job(REPAIR, config).success, "one of the tables is not there"
    (repaired,) = glue.get_partitions(**where)["Partitions"]
    assert repaired["Values"] == partition["Values"]


def test_projection_registers_nothing_and_says_so(deployment: Deployment, table: str) -> None:
    world = deployment.world
    world.put(table, "a")
    assert deployment.run_job("capture").success
    before = world.settings_path.read_text("utf-8")
    world.settings_path.write_text(f"{before}glue: {{projection: true}}\n", "utf-8")
    try:
        (request,) = deployment.tick("glue_partition_sensor").run_requests
        assert deployment.run_job(REPAIR, request.run_config).success
        tick = deployment.tick("glue_partition_sensor")
        assert not tick.run_requests
        assert "Athena projects them" in tick.skip_message
    finally:
        world.settings_path.write_text(before, "utf-8")


def test_glue_trouble_does_not_stop_capture(
    deployment: Deployment, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream loses what is not read in time; the catalogue can wait."""
    from cdc_pipeline.capture import run
    from cdc_pipeline.core.errors import LakeError

    def broken(*_: object) -> None:
        raise LakeError("Glue is down")

    deployment.world.put(table, "a")
    with monkeypatch.context() as while_down:
        while_down.setattr(run, "register_days", broken)
        result = deployment.run_job("capture")
    assert result.success
    assert len(materializations(result)) == 1
    (request,) = deployment.tick("glue_partition_sensor").run_requests
    assert deployment.run_job(REPAIR, request.run_config).success
    assert not deployment.tick("glue_partition_sensor").run_requests


def test_downstream_follows_what_landed(deployment: Deployment, table: str) -> None:
    world = deployment.world
    world.put(table, "a")
    tick = deployment.tick("downstream")
    assert not tick.run_requests, "nothing has landed"
    assert deployment.materialize(table, "pitr_export").success
    time.sleep(1.1)  # the handover margin
    assert deployment.run_job("capture").success
    tick = deployment.tick("downstream")
    asked = {
        request.asset_selection[0].to_user_string(): request.partition_key
        for request in tick.run_requests
    }
    assert asked == {f"{table}/cdc": today().isoformat(), f"{table}/current_state": None}
    assert deployment.follow() == [f"{table}/current_state", f"{table}/cdc"]
    assert deployment.follow() == [], "once is enough"


def test_the_first_export_is_asked_for_only_where_the_settings_say_auto(world: World) -> None:
    auto = {"name": world.make_table("auto"), "snapshot": {"first": "auto"}}
    world.configure(auto, world.make_table("manual"))
    with deploy(world) as made:
        (request,) = made.tick("downstream").run_requests
        assert request.asset_selection == [dg.AssetKey(["auto", "pitr_export"])]
        world.snapshot("auto")  # by a command, of which Dagster hears nothing
        assert not made.tick("downstream").run_requests


def test_yesterday_is_rebuilt_after_midnight(world: World, table: str) -> None:
    path = world.settings_path
    defs = build_definitions(load_settings(path), path)
    midnight = datetime.now(UTC).replace(hour=0, minute=20, second=0, microsecond=0)
    with dg.build_schedule_context(
        scheduled_execution_time=midnight, repository_def=defs.get_repository_def()
    ) as context:
        requests = defs.resolve_schedule_def("yesterday").evaluate_tick(context).run_requests
    assert requests is not None
    (request,) = requests
    assert request.partition_key == (today() - timedelta(days=1)).isoformat()
    job = defs.resolve_job_def(defs.resolve_schedule_def("yesterday").job_name)
    selected = {k.to_user_string() for k in job.asset_layer.executable_asset_keys}
    assert selected == {f"{table}/cdc", f"{table}/raw_stream"}
