"""Lists in docs/ are whole: settings, commands, options, jobs, sensors, checks, columns, causes."""

import re
from typing import Any

import click
import dagster as dg
import pytest

from cdc_pipeline.cli import main
from cdc_pipeline.core.changes.landing_columns import LANDING_COLUMNS
from cdc_pipeline.core.items.columns import SYSTEM_COLUMNS
from cdc_pipeline.core.log.entries import Cause
from cdc_pipeline.defs.build import build_definitions
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.settings.model import Settings
from cdc_pipeline_tests.docs.pages import ROOT

_DOCS = ROOT / "docs"
_FIREHOSE = {"prefixes": ["s3://other/raw/a"]}
_SETTINGS = {
    "lake": "s3://my-lake/dynamodb",
    "reconcile": {"full_schedule": "0 5 * * 0"},
    "tables": [
        {
            "name": "orders",
            "snapshot": {"schedule": "0 3 1 * *"},
            "entities": [{"name": "customer", "when": {"pk": "c"}}],
        },
        {"name": "files", "transport": "firehose", "firehose": _FIREHOSE},
        {"name": "channel", "transport": "kinesis_channel"},
    ],
}
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer")


def _page(name: str) -> str:
    return (_DOCS / name).read_text("utf-8")


def _rows(text: str) -> list[list[str]]:
    """The cells of a page's tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def _first_cells(page: str, heading: str) -> set[str]:
    """The names in the first column of a section's table, without backquotes."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {name for row in _rows(section) for name in re.findall(r"`([^`]+)`", row[0])}


def _default(field: dict[str, Any], required: bool) -> str:
    value = field.get("default")
    if required:
        return "required"
    if value is None or (isinstance(value, dict) and value):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value.is_integer():
        return f"`{int(value)}`"
    return f"`{value}`" if value != "" else '`""`'


def test_settings_have_every_key_with_its_default() -> None:
    schema = Settings.model_json_schema()
    wanted = sorted(
        (f"`{name}`", _default(field, name in model.get("required", ())))
        for model in (schema, *schema["$defs"].values())
        for name, field in model["properties"].items()
    )
    found = sorted((row[0], row[1]) for row in _rows(_page("settings.md")) if row[0] != "key")
    assert [w for w in wanted if w not in found] == []
    assert [f for f in found if f not in wanted] == []
    assert len(found) == len(wanted)


def _leaves(command: click.Command, name: str) -> dict[str, click.Command]:
    if not isinstance(command, click.Group):
        return {name: command}
    found: dict[str, click.Command] = {}
    for part, below in command.commands.items():
        found |= _leaves(below, f"{name} {part}".strip())
    return found


def test_commands_have_every_option() -> None:
    page = _page("cli.md")
    for name, command in _leaves(main, "").items():
        assert f"cdc-pipeline {name}" in page or f"`{name}`" in page, name
        for option in command.params:
            if isinstance(option, click.Option):
                section = _section_of(page, name.split()[0])
                missing = [o for o in option.opts + option.secondary_opts if o not in section]
                assert missing == [], f"{name} {missing}"


def _section_of(page: str, command: str) -> str:
    local = page.partition("\n## Local AWS\n")[2]
    if command in ("demo", "dev", "sandbox"):
        return local
    return page.partition(f"\n### {command}\n")[2].partition("\n### ")[0]


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    path = tmp_path_factory.mktemp("lists") / "cdc_pipeline.yaml"
    (path.parent / "aggregates").mkdir()
    return build_definitions(parse_settings(_SETTINGS, path), path)


def _checks(definitions: dg.Definitions) -> set[str]:
    keys = [key for check in definitions.asset_checks or () for key in check.check_keys]
    return {key.name for key in keys}


def test_every_check_is_listed_and_in_the_runbook(definitions: dg.Definitions) -> None:
    checks = _checks(definitions)
    assert len(checks) == 14
    assert _first_cells(_page("assets.md"), "Checks") >= checks
    failing = _page("runbook.md").partition("\n## Failing checks\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^### (\w+)$", failing, re.MULTILINE)) == checks
    metrics = {name for row in _rows(_page("metrics.md")) for name in re.findall(r"\w+", row[0])}
    assert metrics >= checks


def test_every_job_sensor_and_schedule_is_listed(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    page = _page("assets.md")
    jobs = {job.name for job in definitions.jobs or ()}
    assert _first_cells(page, "Jobs") == jobs
    assert _first_cells(page, "Sensors") == {s.name for s in repository.sensor_defs}
    schedules = {s.name.replace("orders_", "<table>_") for s in repository.schedule_defs}
    assert {name.partition("`")[0] for name in _first_cells(page, "Schedules")} == schedules


def test_columns_and_causes_are_listed() -> None:
    tables = _page("tables.md")
    landing = [row[0].strip("`") for row in _rows(tables.partition("## Landing columns")[2])]
    assert landing[1 : len(LANDING_COLUMNS) + 1] == [column.name for column in LANDING_COLUMNS]
    assert {f"`{name}`" for name in SYSTEM_COLUMNS} <= {row[0] for row in _rows(tables)}
    causes = _first_cells(_page("coverage.md"), "When a gap opens")
    assert causes == set(Cause.__args__)
