"""The key `catalog` of the settings: what each kind needs, and no secrets in file or errors."""

from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.settings.model import Settings

_BUCKET = "arn:aws:s3tables:eu-west-1:111111111111:bucket/tables"
_SECRET = "hunter2-4711"
_REST = {"uri": "https://catalogue.example/api"}


def _parsed(catalog: dict[str, Any] | None, lake: str = "s3://bucket/lake") -> Settings:
    raw: dict[str, Any] = {"lake": lake, "tables": [{"name": "orders"}]}
    if catalog is not None:
        raw["catalog"] = catalog
    return parse_settings(raw, Path("cdc_pipeline.yaml"))


@pytest.mark.parametrize(
    ("lake", "catalog", "kind", "has_glue"),
    [
        ("s3://bucket/lake", None, "glue", True),
        ("./lake", None, "sql", False),
        ("s3://bucket/lake", {"type": "glue-rest"}, "glue-rest", True),
        (
            "s3://bucket/lake",
            {"type": "s3tables", "properties": {"warehouse": _BUCKET}},
            "s3tables",
            True,
        ),
        (
            "./lake",
            {"type": "rest", "properties": _REST, "secrets": {"credential": "X"}},
            "rest",
            False,
        ),
        ("s3://bucket/lake", {"type": "sql", "secrets": {"uri": "CATALOG_URI"}}, "sql", False),
        ("./lake", {"type": "sql"}, "sql", False),
    ],
)
def test_kinds(lake: str, catalog: dict[str, Any] | None, kind: str, has_glue: bool) -> None:
    settings = _parsed(catalog, lake)
    assert (settings.catalog_type, settings.has_glue) == (kind, has_glue)


@pytest.mark.parametrize(
    ("lake", "catalog", "said"),
    [
        ("./lake", {"type": "glue"}, "needs a lake in S3"),
        ("s3://b/l", {"type": "hive"}, "catalog.type"),
        ("s3://b/l", {"type": "sql"}, "'uri' for a lake in S3"),
        ("s3://b/l", {"type": "rest"}, "rest needs the property 'uri'"),
        ("s3://b/l", {"type": "s3tables"}, "s3tables needs the property 'warehouse'"),
        ("s3://b/l", {"type": "s3tables", "properties": {"warehouse": "b"}}, "ARN of a table"),
        ("s3://b/l", {"type": "glue", "properties": {"uri": "x"}}, "glue has no property 'uri'"),
        (
            "s3://b/l",
            {"type": "rest", "properties": {**_REST, "s3.secret-access-key": _SECRET}},
            "access to files depends on",
        ),
        (
            "s3://b/l",
            {"type": "rest", "properties": {**_REST, "credential": f"id:{_SECRET}"}},
            "secrets: {credential: NAME}",
        ),
        (
            "s3://b/l",
            {"type": "rest", "properties": {**_REST, "header.Authorization": _SECRET}},
            "holds a secret",
        ),
        (
            "s3://b/l",
            {"type": "sql", "properties": {"uri": f"postgresql://app:{_SECRET}@db/lake"}},
            "secrets: {uri: NAME}",
        ),
        (
            "s3://b/l",
            {"type": "sql", "properties": {"uri": f"postgresql://db/lake?password={_SECRET}"}},
            "holds a secret",
        ),
        (
            "s3://b/l",
            {"type": "rest", "properties": _REST, "secrets": {"token": _SECRET}},
            "catalog.secrets.token",
        ),
        (
            "s3://b/l",
            {"type": "rest", "properties": _REST, "secrets": {"uri": "X"}},
            "in `properties` and in `secrets`",
        ),
        ("s3://b/l", {"type": "rest", "token": _SECRET}, "catalog.token: unknown key"),
    ],
)
def test_mistakes_are_named_and_secrets_are_not(
    lake: str, catalog: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        _parsed(catalog, lake)
    assert said in str(caught.value)
    assert _SECRET not in str(caught.value)
