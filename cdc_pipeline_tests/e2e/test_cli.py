"""The command line as people and scripts use it, and what must never appear in any output."""

import csv
import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from cdc_pipeline.cli import main
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.deployment import deploy, materializations, today
from cdc_pipeline_tests.e2e.wire import spoil
from cdc_pipeline_tests.e2e.world import World, key, make_world

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]

SECRET = "SECRET-4111-1111-1111"
DIGITS_38 = "12345678901234567890123456789012345678"


@pytest.fixture(scope="module")
def filled(sandbox: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A lake with one table: three items, cdc built; tests only read it."""
    world = make_world(sandbox, tmp_path_factory.mktemp("cli"), "local")
    with pytest.MonkeyPatch.context() as monkeypatch:
        world.activate(monkeypatch)
        name = world.make_table("things")
        world.configure(name, {"name": world.make_table("untouched")})
        world.put(name, "a", big={"N": DIGITS_38}, text={"S": 'x, "y"\nz'}, tags={"SS": ["q"]})
        world.put(name, "b", big={"N": "1"}, bytes={"B": b"\x00\xff"})
        world.bootstrap(name)
        world.put(name, "c", big={"N": "2"})
        world.capture(name)
        world.build_cdc(name)
        yield world


@pytest.fixture
def cli(filled: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    filled.activate(monkeypatch)

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, list(arguments), input=stdin)

    return run


def _refused(result: Result, *said: str) -> None:
    """Exit code 1, nothing on standard output, one message that says what and how."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert "\nError: " not in result.stderr
    assert "Traceback" not in result.stderr
    for part in said:
        assert part in result.stderr


def test_query_as_table(cli: Any) -> None:
    result = cli("query", "SELECT pk, big FROM things.current_state ORDER BY pk")
    assert result.exit_code == 0
    assert DIGITS_38 in result.stdout
    assert "│ c" in result.stdout


def test_query_as_json_with_every_digit(cli: Any) -> None:
    sql = "SELECT pk, big, text FROM things.current_state ORDER BY pk"
    result = cli("query", "--format", "json", sql)
    assert result.exit_code == 0
    assert f'"big":{DIGITS_38}' in result.stdout
    rows = json.loads(result.stdout)
    assert [row["pk"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["text"] == 'x, "y"\nz'
    assert rows[1]["text"] is None


def test_query_as_csv(cli: Any) -> None:
    sql = "SELECT pk, big, text FROM things.current_state ORDER BY pk"
    result = cli("query", "--format", "csv", sql)
    assert result.exit_code == 0
    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert rows == [
        ["pk", "big", "text"],
        ["a", DIGITS_38, 'x, "y"\nz'],
        ["b", "1", ""],
        ["c", "2", ""],
    ]


@pytest.mark.parametrize("form", ["json", "csv"])
def test_query_of_lists_and_bytes(cli: Any, form: str) -> None:
    result = cli("query", "--format", form, "SELECT tags, bytes FROM things.current_state")
    assert result.exit_code == 0, result.output
    assert '["q"]' in result.stdout.replace('""', '"')


def test_query_without_rows(cli: Any) -> None:
    sql = "SELECT pk FROM things.current_state WHERE false"
    assert json.loads(cli("query", "--format", "json", sql).stdout) == []
    assert cli("query", "--format", "csv", sql).stdout == "pk\n"


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_query_from_standard_input(cli: Any, arguments: tuple[str, ...]) -> None:
    sql = "SELECT count(*) AS n FROM things.cdc"
    result = cli("query", *arguments, "--format", "csv", stdin=sql)
    assert result.stdout == "n\n3\n"


def test_query_errors(cli: Any) -> None:
    _refused(cli("query", "SELEKT 1"), "not valid SQL", "Line 1")
    _refused(cli("query", "SELECT * FROM nowhere.current_state"), "'nowhere'", "things")
    _refused(cli("query", "SELECT * FROM things.no_view"), "no_view", "things.current_state")
    _refused(cli("query", "SELECT no_column FROM things.current_state"), "no_column")
    _refused(
        cli("query", "--format", "json", "SELECT CAST('x' || pk AS INT) FROM things.current_state"),
        "INT32",
    )
    no_sql = cli("query", stdin="  \n")
    assert no_sql.exit_code == 2
    assert "no SQL" in no_sql.stderr


def test_a_view_that_does_not_exist_yet_is_named(cli: Any) -> None:
    _refused(cli("query", "SELECT * FROM untouched.current_state"), "untouched", "materialise")


def test_query_leaves_the_lake_alone(cli: Any, filled: World) -> None:
    before = filled.stored()
    for sql in ("DELETE FROM things.cdc", "DROP VIEW things.cdc", "CREATE TABLE t AS SELECT 1"):
        cli("query", sql)
    assert filled.stored() == before
    counted = cli("query", "SELECT count(*) AS n FROM things.cdc", "--format", "csv")
    assert counted.stdout == "n\n3\n"


def test_status(cli: Any) -> None:
    result = cli("status", "--json")
    assert result.exit_code == 0
    things, untouched = json.loads(result.stdout)
    assert things["table"] == "things"
    assert things["items"] == 2
    assert things["changes"] == 3
    assert things["open_shards"] == 1
    assert things["quarantined"] == 0
    assert things["log_entry"] > things["state_entry"]
    now = time.time() * 1_000_000
    assert 0 < things["captured_to_us"] <= now
    assert things["last_export_us"] <= now
    assert untouched["items"] is None
    assert untouched["log_entry"] == 0
    assert cli("status").exit_code == 0
    assert "things" in cli("status").stdout
    assert "coverage" not in cli("status").stdout
    covered = cli("status", "things").stdout
    assert "coverage of things" in covered
    assert "in the state of the export at" in covered
    today = f"{datetime.now(UTC):%Y-%m-%d} "
    assert any(line.startswith(today) and "░" in line for line in covered.splitlines())
    assert [s["means"] for s in things["coverage"]] == ["export", "stream", "unread"]


def test_settings_schema(cli: Any) -> None:
    schema = json.loads(cli("settings-schema").stdout)
    assert {"lake", "tables", "capture"} <= schema["properties"].keys()
    assert schema["required"] == ["lake", "tables"]


def test_help_of_every_command(cli: Any) -> None:
    commands = {(), *((name,) for name in main.commands)}
    assert {("query",), ("status",), ("settings-schema",), ("demo",), ("dev",)} <= commands
    for command in commands:
        for option in ("--help", "-h"):
            result = cli(*command, option)
            assert result.exit_code == 0
            assert "Usage:" in result.stdout
            assert len(result.stdout.splitlines()) > 4, "a help text says something"


def test_errors_before_the_lake(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_PIPELINE_CONFIG", str(tmp_path / "none.yaml"))
    for arguments in (("status",), ("query", "SELECT 1")):
        _refused(cli(*arguments), "none.yaml", "cdc_pipeline.example.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("lake: [\n")
    monkeypatch.setenv("CDC_PIPELINE_CONFIG", str(broken))
    _refused(cli("status"), "broken.yaml", "not YAML")


def _command(world: World, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from cdc_pipeline.cli import main; main()", *arguments],
        env=world.environment({"PATH": "/usr/bin:/bin"}),
        cwd=world.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def test_as_a_process(filled: World) -> None:
    sql = "SELECT pk FROM things.current_state ORDER BY pk"
    found = _command(filled, "query", "--format", "csv", input=sql)
    assert (found.returncode, found.stdout, found.stderr) == (0, "pk\na\nb\nc\n", "")
    wrong = _command(filled, "query", "SELECT * FROM nowhere.cdc")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("Error: ")
    assert "Traceback" not in wrong.stderr
    assert _command(filled, "nonsense").returncode == 2


def test_a_profile_set_to_garbage_does_not_disturb_the_sandbox(
    sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's helper: whatever the shell says of AWS, its clients reach the sandbox."""
    from cdc_pipeline.sandbox.process import local_client

    for name, value in (
        ("AWS_PROFILE", "no-such-profile"),
        ("AWS_DEFAULT_PROFILE", "no-such-profile"),
        ("AWS_SESSION_TOKEN", "stale"),
        ("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:1"),
        ("AWS_CONFIG_FILE", "/no/such/file"),
        ("HTTP_PROXY", "http://127.0.0.1:1"),
    ):
        monkeypatch.setenv(name, value)
    environment = dict(os.environ)
    sandbox.apply_environment(environment)
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL_DYNAMODB"):
        assert name not in environment
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    client: Any = local_client("dynamodb")
    assert "TableNames" in client.list_tables()


@pytest.mark.parametrize("kind", ["local"], indirect=True)
def test_item_contents_appear_in_no_output(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Records that end in quarantine: told by reason and number, never by what they hold."""
    name = world.make_table("private")
    world.configure(name)
    damages = {
        f"{SECRET}-type": lambda r: r["dynamodb"]["NewImage"].update(v={SECRET: SECRET}),
        f"{SECRET}-number": lambda r: r["dynamodb"]["NewImage"].update(v={"N": SECRET}),
        f"{SECRET}-binary": lambda r: r["dynamodb"]["NewImage"].update(v={"B": f"!{SECRET}"}),
        f"{SECRET}-name": lambda r: r["dynamodb"]["NewImage"].update({SECRET: {"L": SECRET}}),
        f"{SECRET}-event": lambda r: r.update(eventName=SECRET),
        f"{SECRET}-time": lambda r: r["dynamodb"].update(ApproximateCreationDateTime=SECRET),
        f"{SECRET}-text": lambda r: r["dynamodb"]["NewImage"].update(v={"S": f"{SECRET}\ud800"}),
    }
    for pk in (*damages, f"{SECRET}-good"):
        world.put(name, pk, v={"S": SECRET})
    spoil(monkeypatch, damages)
    said: list[str] = []
    with caplog.at_level(logging.DEBUG), deploy(world) as made:
        # botocore logs whole requests at this level; that is the choice of whoever turns it on.
        for chatty in ("botocore", "boto3", "urllib3", "pyiceberg"):
            logging.getLogger(chatty).setLevel(logging.INFO)
        results = [
            made.run_job("capture"),
            made.materialize(name, "raw_stream", day=today()),
            made.materialize(name, "cdc", day=today()),
            made.materialize(name, "current_state"),
            made.materialize(name, "pitr_export"),
        ]
        assert [result.success for result in results] == [True, True, True, False, True]
        for result in results:
            said += [str(event) for event in result.all_events]
            said += [str(m.metadata) for m in materializations(result)]
            said += [str(log) for log in made.instance.all_logs(result.run_id)]
        asset = dg.AssetKey([name, "raw_stream"])
        checks = results[1].get_asset_check_evaluations()
        assert "7" in str([check.metadata for check in checks if not check.passed])
        assert made.instance.get_latest_materialization_event(asset) is not None
        tick = made.tick("glue_partition_sensor")
        said.append(str(tick))
    quarantined = world.table_lake(name).log.load().quarantined
    assert sum(part.rows for part in quarantined.values()) == len(damages)
    for command in (("status",), ("status", "--json")):
        said.append(CliRunner().invoke(main, command).output)
    log_entries = [k for k in world.stored("_cdc/") if k.endswith(".json")]
    said += [(world.lake().store.read(entry) or b"").decode() for entry in log_entries]
    world.dynamodb.delete_item(TableName=name, Key=key(f"{SECRET}-good"))
    out, err = capfd.readouterr()
    text = "\n".join([*said, caplog.text, out, err])
    assert len(text) > 10_000, "there was something to look through"
    assert "SECRET" not in text


def test_a_failed_comparison_names_keys_only(filled: World) -> None:
    """The proof's examples are keys; values stay where they are."""
    from cdc_pipeline.reconcile.compare import compare_with_source

    filled.put("things", "d", v={"S": SECRET})
    try:
        found = compare_with_source(filled.table_lake("things"))
    finally:
        filled.delete("things", "d")
    assert found.missing == 1
    assert found.examples == ['{"pk":{"S":"d"},"sk":{"N":"1"}}']
    assert "SECRET" not in str(found)
