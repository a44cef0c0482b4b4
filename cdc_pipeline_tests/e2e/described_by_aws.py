"""What AWS may say of exports and tables and no local AWS does: added to its answers."""

from typing import Any

import pytest
from botocore.client import BaseClient


def filter_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every export is described as a filtered one."""
    specification = {"FilterExpression": "attribute_exists(v)"}
    _add(monkeypatch, "DescribeExport", "ExportDescription", {"FilterSpecification": specification})


def make_global(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table is described as one that is also in eu-west-1."""
    replicas = [{"RegionName": region} for region in ("us-east-1", "eu-west-1")]
    _add(monkeypatch, "DescribeTable", "Table", {"Replicas": replicas})


def _add(monkeypatch: pytest.MonkeyPatch, wanted: str, part: str, more: dict[str, Any]) -> None:
    call = BaseClient._make_api_call

    def answer(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        found = call(client, operation, arguments)
        if operation == wanted:
            found[part] |= more
        return found

    monkeypatch.setattr(BaseClient, "_make_api_call", answer)
