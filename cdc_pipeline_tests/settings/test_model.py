"""The settings file: every mistake is one readable error."""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.settings.load import (
    DEFAULT_PATH,
    PATH_VARIABLE,
    load_settings,
    parse_settings,
    parse_table,
    settings_schema,
)
from cdc_pipeline.settings.model import Settings

_EXAMPLE = Path(__file__).parents[2] / "cdc_pipeline.example.yaml"
_GOOD: dict[str, Any] = {"lake": "lake", "tables": [{"name": "orders"}]}
_FIREHOSE = {
    "prefixes": ["s3://b/lake/dynamo-backup/cdc/orders"],
    "error_prefixes": ["s3://b/lake/dynamo-cdc/cdc/error/orders"],
}


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _refused(path: Path) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(path)
    assert str(path) in refused.value.message
    assert "Traceback" not in str(refused.value)
    return refused.value.message


def _table(**parts: Any) -> dict[str, Any]:
    return {**_GOOD, "tables": [{"name": "orders", **parts}]}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({**_GOOD, "lakes": 1}, ["lakes: unknown key", "allowed: lake, database, region"]),
        (_table(nmae="x"), ["tables.0.nmae: unknown key", "allowed: name, transport, "]),
        (
            _table(snapshot={"when": 1}),
            ["tables.0.snapshot.when: unknown key", "allowed: first, schedule"],
        ),
        ({**_GOOD, "capture": {"x": 1}}, ["capture.x: unknown key", "interval_seconds"]),
        (
            {**_GOOD, "capture": {"interval_seconds": "often"}},
            ["capture.interval_seconds", "'often'"],
        ),
        ({**_GOOD, "capture": {"interval_seconds": 1}}, ["interval_seconds: found 1", "5"]),
        ({**_GOOD, "capture": 5}, ["capture: found 5"]),
        ({**_GOOD, "handover_margin_seconds": float("inf")}, ["handover_margin_seconds", "inf"]),
        ({**_GOOD, "handover_margin_seconds": float("nan")}, ["handover_margin_seconds", "nan"]),
        ({**_GOOD, "lake": 5}, ["lake: found 5", "string"]),
        (
            {**_GOOD, "lake": "https://x/y"},
            ["'https://x/y'", "s3://bucket/prefix", "local folder"],
        ),
        ({**_GOOD, "database": "My-Db"}, ["database: found 'My-Db'", "^[a-z0-9_]+$"]),
        ({**_GOOD, "start_date": "soon"}, ["start_date: found 'soon'", "date"]),
        # Dagster takes no such date for the first of its partitions.
        ({**_GOOD, "start_date": "0001-01-01"}, ["start_date: found '0001-01-01'", "1970-01-01"]),
        (_table(owner="a@example.technology"), ["owner: found 'a@example.technology'", "letters"]),
        (
            _table(snapshot={"first": "always"}),
            ["snapshot.first: found 'always'", "'manual'", "'auto'"],
        ),
        (_table(transport="kafka"), ["tables.0.transport: found 'kafka'", "'dynamodb_streams'"]),
        (_table(name="x"), ["tables.0.name: found 'x'"]),
        (_table(name="a b c"), ["tables.0.name: found 'a b c'"]),
        (_table(owner="Jo"), ["tables.0.owner: found 'Jo'", "e-mail", "team:"]),
        (_table(group="my group"), ["tables.0.group: found 'my group'"]),
        (
            _table(snapshot={"schedule": "daily"}),
            ["snapshot.schedule: found 'daily'", "five fields"],
        ),
        ({**_GOOD, "schedules": {"yesterday": "* * *"}}, ["schedules.yesterday: found '* * *'"]),
        ({"lake": "x"}, ["tables: required, but missing"]),
        ({"tables": [{"name": "orders"}]}, ["lake: required, but missing"]),
        ({**_GOOD, "tables": []}, ["tables: no tables"]),
        ({**_GOOD, "tables": None}, ["tables: found None"]),
        ({**_GOOD, "tables": ["orders"]}, ["tables.0: found 'orders'"]),
        (
            {**_GOOD, "tables": [{"name": "my-table"}, {"name": "My.Table"}]},
            ["'my-table' and 'My.Table'", "'my_table'"],
        ),
        ({**_GOOD, "tables": [{"name": "orders"}] * 2}, ["'orders' is listed twice"]),
        (_table(columns=["email"]), ["tables.0.columns: found ['email']"]),
        (_table(columns={"email": {}}), ["columns.email", "exactly one of hash: true, drop"]),
        (
            _table(columns={"email": {"hash": True, "drop": True}}),
            ["columns.email", "exactly one of"],
        ),
        (_table(columns={"email": {"hash": False}}), ["columns.email", "exactly one of"]),
        (
            _table(columns={"email": {"hsh": True}}),
            ["tables.0.columns.email.hsh: unknown key", "allowed: hash, drop, mask, type"],
        ),
        (_table(columns={"type": {"x": 1}}), ["columns.type.x: unknown key", "allowed: hash"]),
        (
            _table(columns={"total": {"type": "decimal(39,2)"}}),
            ["columns.total.type: found 'decimal(39,2)'", "decimal(p,s)"],
        ),
        (_table(columns={1: {"drop": True}}), ["tables.0.columns.1", "string"]),
        (_table(schema_contract="no"), ["schema_contract: found 'no'", "'evolve'", "'refuse'"]),
        ({**_GOOD, "masking_key_env": "my key"}, ["masking_key_env: found 'my key'"]),
        (_table(name="Aggregates"), ["'Aggregates'", "'aggregates' is reserved"]),
        (_table(name="error"), ["'error' is reserved"]),
        (_table(transport="firehose"), ["tables.0", "firehose: {prefixes: [s3://...]}"]),
        (_table(firehose={}), ["tables.0.firehose.prefixes: required"]),
        (_table(firehose={"prefixes": []}), ["tables.0.firehose.prefixes: found []"]),
        (_table(firehose={"prefixes": ["raw/"]}), ["prefixes.0: found 'raw/'", "s3://bucket"]),
        (
            _table(firehose={"prefixes": ["s3://b/raw/!{timestamp:yyyy}"]}),
            ["prefixes.0: found", "without expressions"],
        ),
        (
            {**_table(firehose={"prefixes": ["s3://b/lake"]}), "lake": "s3://b/lake/x"},
            ["'orders': s3://b/lake/ is Firehose's", "s3://b/lake/x/_cdc/ the lake's own"],
        ),
        (
            {**_table(firehose=_FIREHOSE), "lake": "s3://b/lake"},
            ["s3://b/lake/dynamo-cdc/cdc/error/orders/ is Firehose's"],
        ),
    ],
)
def test_mistakes_name_file_key_finding_and_choices(
    raw: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    path = _write(tmp_path, yaml.safe_dump(raw))
    message = _refused(path)
    assert all(part in message for part in said), message
    assert len(message.splitlines()) <= 3


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    message = _refused(_write(tmp_path, "lakes: x\ncapture: {flush_rows: 0}\ntables: []\n"))
    for key in ("lake:", "lakes:", "capture.flush_rows:", "tables:"):
        assert f"- {key}" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "contains no settings"),
        ("# only a comment\n", "contains no settings"),
        ("- lake\n", "contains no settings"),
        ("just text\n", "contains no settings"),
        ("lake: [x\n", "not YAML"),
        ("lake: x\n\ttables: y\n", "not YAML"),
        ("lake: a\nlake: b\n", "'lake' is given twice"),
        ("lake: a\ntables:\n  - name: orders\n    name: b\n", "'name' is given twice"),
        ("lake: *nowhere\n", "not YAML"),
        ("--- 1\n--- 2\n", "not YAML"),
        ("x: !!python/object:os.system {}\n", "not YAML"),
        ("x: \x01\n", "not YAML"),
        # What the YAML library itself answers with other exceptions than its own.
        ("lake: a\nstart_date: 2026-13-01\n", "start_date: found '2026-13-01'"),
        ("? [a, b]\n: x\n", "not YAML"),
        ("? {a: b}\n: x\n", "not YAML"),
        ("x: !!int abc\n", "not YAML"),
        ("x: !!bool 5\n", "not YAML"),
        ("x: " + "[" * 3000, "not YAML"),
    ],
    ids=lambda part: part[:20],
)
def test_files_that_are_not_settings(text: str, said: str, tmp_path: Path) -> None:
    assert said in _refused(_write(tmp_path, text))


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    assert "cannot be read" in _refused(_write(tmp_path, b"\xff\xfe\x00lake"))


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no settings file at .*nowhere\.yaml") as refused:
        load_settings(tmp_path / "nowhere.yaml")
    assert "cdc_pipeline.example.yaml" in (refused.value.fix or "")


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    assert "cannot be read" in _refused(tmp_path)


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=3),
    st.sampled_from(["s3://b/p", "orders", "auto", "a b c d e", "team:x"]),
)
_keys = st.sampled_from([*Settings.model_fields, "name", "snapshot", "first", "x"]) | st.text(
    max_size=3
)
_anything = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_keys | st.integers() | st.none() | st.dates(), inner, max_size=4)
    ),
    max_leaves=8,
)


def _only_settings_errors(raw: Any) -> None:
    try:
        settings = parse_settings(raw, Path("s.yaml"))
    except SettingsError as error:
        assert "s.yaml" in error.message  # noqa: PT017 - it need not be raised
    else:
        assert settings.tables


@given(_anything)
def test_no_structure_raises_anything_but_a_settings_error(raw: Any) -> None:
    _only_settings_errors(raw)


@given(st.dictionaries(st.sampled_from(list(Settings.model_fields)), _anything, max_size=3))
def test_no_value_raises_anything_but_a_settings_error(parts: dict[str, Any]) -> None:
    _only_settings_errors({**_GOOD, **parts})


@given(_anything)
def test_no_yaml_raises_anything_but_a_settings_error(raw: Any) -> None:
    text = yaml.safe_dump({**_GOOD, "export": raw}, allow_unicode=True)
    _only_settings_errors(yaml.safe_load(text))


def test_a_relative_lake_counts_from_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deployment"
    folder.mkdir()
    path = _write(folder, yaml.safe_dump({**_GOOD, "lake": "data/lake", "aggregates": "sql"}))
    monkeypatch.chdir(tmp_path)
    for spelled in (path, path.relative_to(tmp_path)):
        settings = load_settings(spelled)
        assert settings.lake_folder == folder / "data" / "lake"
        assert settings.aggregates_folder == folder / "sql"
        assert not settings.is_s3


def test_an_absolute_lake_is_taken_as_it_is(tmp_path: Path) -> None:
    path = _write(tmp_path, yaml.safe_dump({**_GOOD, "lake": "/data/lake"}))
    assert load_settings(path).lake_folder == Path("/data/lake")


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(_write(tmp_path, yaml.safe_dump(_GOOD))))
    assert load_settings().tables[0].name == "orders"
    monkeypatch.delenv(PATH_VARIABLE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=DEFAULT_PATH):
        load_settings()


def test_tables_of_one_name_need_an_alias() -> None:
    role = "arn:aws:iam::123456789012:role/reader"
    raw = {**_GOOD, "region": "us-east-1", "tables": [{"name": "Orders"}]}
    for other, error in (
        ({"region": "us-east-1"}, "'Orders' is listed twice"),
        ({"region": "us-east-1", "alias": "x"}, "'Orders' is listed twice"),
        ({"region": "us-west-2"}, "give one of them an `alias`"),
        ({"role_arn": role}, "give one of them an `alias`"),
        ({"role_arn": role, "alias": "orders"}, "give one of them an `alias`"),
    ):
        with pytest.raises(SettingsError, match=error):
            parse_settings(
                {**raw, "tables": [{"name": "Orders"}, {"name": "Orders", **other}]}, Path("s.yaml")
            )
    west = {"name": "Orders", "region": "us-west-2", "alias": "west"}
    far = {"name": "Orders", "role_arn": role, "alias": "far"}
    settings = parse_settings({**raw, "tables": [{"name": "Orders"}, west, far]}, Path("s.yaml"))
    assert [table.safe_name for table in settings.tables] == ["orders", "west", "far"]
    assert settings.table("Orders") is settings.table("orders") is settings.tables[0]
    assert settings.table("far").account == "123456789012"
    only = parse_settings({**raw, "tables": [west, far]}, Path("s.yaml"))
    with pytest.raises(SettingsError, match=r"2 tables 'Orders'.*\n.*west, far"):
        only.table("Orders")
    one = parse_settings({**raw, "tables": [west]}, Path("s.yaml"))
    assert one.table("Orders").label == "west"


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({"region": "Europe"}, "tables.0.region: found 'Europe'"),
        ({"role_arn": "arn:aws:iam::1:role/x"}, "tables.0.role_arn"),
        ({"external_id": "x-17"}, "`role_arn`, which is missing"),
        ({"alias": "A-b"}, "tables.0.alias"),
    ],
)
def test_other_accounts_and_regions_are_checked(parts: dict[str, str], error: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(error)):
        parse_settings(_table(**parts), Path("s.yaml"))


def test_tables_are_found_by_either_name() -> None:
    settings = parse_settings(_table(name="My.Table"), Path("s.yaml"))
    assert settings.table("My.Table") is settings.table("my_table")
    with pytest.raises(SettingsError, match="no table 'other'") as refused:
        settings.table("other")
    assert "My.Table" in (refused.value.fix or "")


def test_column_rules_are_by_exact_attribute_name() -> None:
    rules: dict[str, Any] = {
        "Email": {"hash": True},
        "": {"drop": True},
        "a.b": {"mask": ""},
        "日本": {"type": "decimal( 38, 2 )"},
        "type": {"type": "list<int64>"},
    }
    (table,) = parse_settings(_table(columns=rules), Path("s.yaml")).tables
    assert list(table.columns) == list(rules)
    assert (table.columns["日本"].type, table.columns["a.b"].mask) == ("decimal(38,2)", "")
    assert table.columns["Email"].hash


def test_the_example_loads_and_fits_the_schema() -> None:
    settings = load_settings(_EXAMPLE)
    assert settings.is_s3
    assert [table.safe_name for table in settings.tables] == ["orders", "customers"]
    schema = json.loads(json.dumps(settings_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    raw = yaml.safe_load(_EXAMPLE.read_text("utf-8"))
    assert raw["start_date"] == settings.start_date
    raw["start_date"] = raw["start_date"].isoformat()
    jsonschema.validate(raw, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**raw, "unknown": 1}, schema)


def test_every_default_is_said_to_editors() -> None:
    settings = parse_settings(_GOOD, Path("s.yaml"))
    for name, part in settings_schema()["properties"].items():
        if "default" not in part or isinstance(part["default"], dict):
            continue
        value = getattr(settings, name)
        assert part["default"] == (value.isoformat() if isinstance(value, date) else value)


def test_the_schema_for_editors_is_the_present_one() -> None:
    path = Path(__file__).parents[2] / "docs" / "settings.schema.json"
    assert json.loads(path.read_text("utf-8")) == settings_schema(), (
        "run: cdc-pipeline settings-schema > docs/settings.schema.json"
    )


@pytest.mark.parametrize(
    "region", ["eu-west-1", "us-gov-west-1", "eusc-de-east-1", "us-isof-east-1"]
)
def test_regions_of_every_partition(region: str) -> None:
    assert parse_table({"name": "orders", "region": region}).region == region


@pytest.mark.parametrize("region", ["eu-central", "Frankfurt", "eu_west_1", "euscx-de-east-1"])
def test_what_is_no_region(region: str) -> None:
    with pytest.raises(SettingsError, match="region"):
        parse_table({"name": "orders", "region": region})


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("aws/s3", True),
        ("arn:aws-cn:kms:cn-north-1:111111111111:key/0a-1b", True),
        ("alias/lake", False),
        ("arn:aws:kms:us-east-1:111111111111:alias/lake", False),
    ],
)
def test_kms_keys(key: str, right: bool, tmp_path: Path) -> None:
    raw = {"lake": "s3://b/l", "kms_key": key, "tables": [{"name": "orders"}]}
    if right:
        assert parse_settings(raw, tmp_path / "s.yaml").kms_key == key
        return
    with pytest.raises(SettingsError, match="kms_key"):
        parse_settings(raw, tmp_path / "s.yaml")
