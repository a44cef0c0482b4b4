"""What README and the pages show in code blocks: commands, settings, SQL and Python that work.

`make` targets exist, `cdc-pipeline` commands are parsed with their options, and run on a small lake
(slow). Anything else in a shell block has its reason in a comment before the block.
"""

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import click
import pytest
import yaml
from botocore import xform_name
from click.testing import CliRunner

from cdc_pipeline.cli import main
from cdc_pipeline.lake import connect
from cdc_pipeline.lake.query.aggregates import build_aggregate, build_days
from cdc_pipeline.sandbox.demo import items
from cdc_pipeline.sandbox.demo.traffic import create_tables
from cdc_pipeline.settings.load import PATH_VARIABLE, parse_settings
from cdc_pipeline.settings.model import Settings
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.docs.pages import (
    OURS,
    PAGES,
    ROOT,
    Block,
    Command,
    commands,
    every_block,
    every_command,
)
from cdc_pipeline_tests.e2e.world import World, make_world, quick_sandbox

_SPAN = re.compile(r"`((?:cdc-pipeline|make) [^`]+)`")
_PARTS_OF_SPANS = re.compile(r"\.\.\.|\[|…")
_GENERAL = {"--query", "--output", "--region"}
_NOT_IN_MODELS = {("cloudformation", "deploy"), ("kinesis", "wait")}
_SETTINGS = {"lake": "s3://my-lake/dynamodb", "tables": [{"name": "orders"}]}
_DAY = datetime(2026, 3, 7, tzinfo=UTC)
_SHELL = every_block("sh")
_SHOP = (
    {"pk": "c#ada", "sk": "c#ada", "name": "Ada", "address": {"city": "Turin", "geo": {"lat": 45}}},
    {"pk": "o#1001", "sk": "c#ada", "ref": 77, "status": "paid"},
    {"pk": "o#1001", "sk": "p#viola", "ref": "gift", "amount": 1},
)


def _spans(program: str) -> list[str]:
    """Commands in the running text, without those that leave something open."""
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    found = {" ".join(span.split()) for span in _SPAN.findall(text)}
    return sorted(s for s in found if s.startswith(f"{program} ") and not _PARTS_OF_SPANS.search(s))


def _targets() -> set[str]:
    """Every target of the Makefile, as make lists its rules; nothing is made.

    A name that is only .PHONY has neither prerequisites nor a recipe.
    """
    done = subprocess.run(
        ["make", "-n", "-p", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rules = re.findall(r"^([a-z-]+):(.*(?:\n.+)*)", done.stdout, re.MULTILINE)
    return {name for name, rule in rules if "recipe to execute" in rule or rule.split("\n")[0]}


def test_make_targets_exist() -> None:
    words = [word for command in every_command("make") for word in command.words[1:]]
    words += [word for span in _spans("make") for word in shlex.split(span)[1:]]
    named = {word for word in words if "=" not in word}
    assert {"demo", "test", "dev", "bench"} <= named
    assert named - _targets() == set()


def _parse(words: list[str]) -> None:
    """Raise for what click refuses: unknown commands, options, values."""
    command: click.Command = main
    context = click.Context(main, info_name=OURS)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None, name
        command = found
    command.make_context(str(command.name), list(words), parent=context)


@pytest.mark.parametrize("command", every_command(OURS), ids=lambda c: c.block.where)
def test_commands_parse(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tables.csv").touch()
    _parse(list(command.words[1:]))


@pytest.mark.parametrize("span", _spans(OURS))
def test_commands_in_the_text_parse(span: str) -> None:
    try:
        _parse(shlex.split(span)[1:])
    except click.MissingParameter:
        pass  # the text names the command, it does not show a call
    except click.UsageError as error:
        # As here, and an option without its value.
        if not re.search("requires an argument|Missing command", str(error)):
            raise


def test_what_click_refuses_is_found() -> None:
    for wrong in (["no-command"], ["query", "--no-option"], ["status", "--json=x"]):
        with pytest.raises(click.UsageError):
            _parse(wrong)


def test_what_is_not_run_has_its_reason() -> None:
    for block in _SHELL:
        programs = {command.program for command in commands(block)}
        assert programs, block.where
        if programs - {"make", OURS}:
            assert block.reason, f"{block.where} needs <!-- not run: REASON --> before it"


def test_aws_commands_are_of_its_own_model() -> None:
    session = botocore.session.get_session()
    seen = set()
    for command in every_command("aws"):
        service, operation, *options = command.words[1:]
        if service == "s3" or (service, operation) in _NOT_IN_MODELS:
            continue
        model = session.get_service_model(service)
        operations: Any = model.operation_names
        names = {xform_name(name, "-"): name for name in operations}
        assert operation in names, command.block.where
        shape: Any = model.operation_model(names[operation]).input_shape
        allowed = {f"--{xform_name(name, '-')}" for name in shape.members} | _GENERAL
        given = {option for option in options if option.startswith("--")}
        assert given <= allowed, command.block.where
        seen.add(operation)
    assert {"update-table", "create-stream", "describe-stacks"} <= seen


@pytest.mark.parametrize("block", every_block("yaml"), ids=lambda b: b.where)
def test_settings_are_valid(block: Block) -> None:
    raw = yaml.safe_load(block.text)
    if raw.keys() <= Settings.model_fields.keys():
        settings = {**_SETTINGS, **raw}
    else:
        settings = {**_SETTINGS, "tables": [{**_SETTINGS["tables"][0], **raw}]}
    parse_settings(settings, ROOT / "s.yaml")


@pytest.mark.parametrize("block", every_block("python"), ids=lambda b: b.where)
def test_python_compiles(block: Block) -> None:
    ast.parse(block.text)


# What follows runs them.


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Tables, rows and aggregates that the pages speak of, in the sandbox."""
    with quick_sandbox() as sandbox, pytest.MonkeyPatch.context() as monkeypatch:
        world = make_world(sandbox, tmp_path_factory.mktemp("docs"), "local")
        world.activate(monkeypatch)
        _write_tables(world)
        entities = yaml.safe_load(_entities_block().text)["tables"]
        world.configure("orders", "customers", *entities)
        for name in ("orders", "customers", "shop"):
            world.snapshot(name)
        _change_orders(world)
        for name in ("orders", "customers", "shop"):
            world.capture_past_handover(name)
            world.publish(name)
            world.build_cdc(name)
        _build_aggregates(world)
        yield world


def _entities_block() -> Block:
    found = every_block("yaml")
    return next(b for b in found if b.page.name == "entities.md" and "shop" in b.text)


def _write_tables(world: World) -> None:
    from boto3.dynamodb.types import TypeSerializer

    create_tables(world.dynamodb)
    create_tables(_elsewhere(world))
    world.make_table("payments")
    _create_shop(world)
    for n in range(1, 25):
        order = items.order(7, n, 5, _DAY)
        order |= {"customer_id": {"S": f"c-{n}"}, "order_id": {"S": f"o-{n}"}}
        world.dynamodb.put_item(TableName="orders", Item=order)
        world.dynamodb.put_item(TableName="customers", Item=items.customer(7, n, _DAY))
    for item in _SHOP:
        typed = TypeSerializer().serialize(item)["M"]
        world.dynamodb.put_item(TableName="shop", Item=typed)


def _elsewhere(world: World) -> Any:
    """DynamoDB in the region of the example, whose tables are looked up there."""
    session = boto3.Session(world.account, "sandbox", region_name="eu-central-1")
    return session.client("dynamodb", endpoint_url=world.endpoint_url)


def _create_shop(world: World) -> None:
    world.dynamodb.create_table(
        TableName="shop",
        KeySchema=[
            {"AttributeName": "pk", "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")
        ],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    world.dynamodb.update_continuous_backups(
        TableName="shop", PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )


def _change_orders(world: World) -> None:
    """A change in the stream, and a source that no longer has what is erased."""
    order = items.order(7, 1, 5, _DAY, revision=1)
    order |= {"customer_id": {"S": "c-1"}, "order_id": {"S": "o-1"}}
    world.dynamodb.put_item(TableName="orders", Item=order)
    gone = {"customer_id": {"S": "c-17"}, "order_id": {"S": "o-17"}}
    world.dynamodb.delete_item(TableName="orders", Key=gone)


def _build_aggregates(world: World) -> None:
    for aggregate in load_aggregates(world.lake().settings.aggregates_folder):
        if aggregate.daily:
            list(build_days(world.lake(), aggregate, [_DAY.date()]))
        else:
            build_aggregate(world.lake(), aggregate)


def _moment(world: World) -> str:
    """A time that the lake has: the second after the baseline of orders."""
    staged = world.table_lake("orders").log.load().staged
    assert staged is not None
    return datetime.fromtimestamp(staged.export_time_us // 1_000_000 + 1, UTC).isoformat()


@pytest.fixture
def folder(lake: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that commands read."""
    lake.activate(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tables.csv").write_text("payments\n")
    (tmp_path / "report.sql").write_text("SELECT count(*) AS n FROM orders.current_state\n")
    (tmp_path / "dagster.yaml").touch()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def _run(world: World, command: Command, folder: Path) -> None:
    words = list(command.words[1:])
    for at, word in enumerate(words):
        if word == "--as-of":
            words[at + 1] = _moment(world)
    env = {}
    if "--lake" in words:
        env = {PATH_VARIABLE: str(folder / "new.yaml")}
    stdin = (folder / command.source).read_text("utf-8") if command.source else "y\n"
    done = CliRunner().invoke(main, words, input=stdin, env=env)
    assert done.exit_code == 0, f"{' '.join(command.words)}\n{done.output}\n{done.exception!r}"
    assert done.stdout
    if command.target:
        (folder / command.target).write_text(done.stdout, "utf-8")


_RUN = [
    block
    for block in _SHELL
    if not block.reason and any(command.program == OURS for command in commands(block))
]


_ran: set[tuple[str, ...]] = set()
"""Pages repeat commands. `tables` edits the settings: a block with it runs as a whole."""


@pytest.mark.slow
@pytest.mark.parametrize("block", _RUN, ids=lambda b: b.where)
def test_commands_run(block: Block, lake: World, folder: Path) -> None:
    for command in commands(block):
        is_new = command.words[1:] not in _ran or command.words[1] == "tables"
        if command.program == OURS and is_new:
            _ran.add(command.words[1:])
            _run(lake, command, folder)


@pytest.mark.slow
@pytest.mark.parametrize("block", every_block("python"), ids=lambda b: b.where)
def test_python_runs(block: Block, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block.text, block.where, "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("block", every_block("sql"), ids=lambda b: b.where)
def test_sql_runs(block: Block, folder: Path) -> None:
    parameters = {"day": _DAY.date()} if "$day" in block.text else None
    with connect() as connection:
        assert connection.execute(block.text, parameters).fetchall()
