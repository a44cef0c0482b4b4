"""Stream records altered on their way from the source to the package."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from cdc_pipeline.aws.shards import Page
from cdc_pipeline.aws.streams import DynamoDBStreams


def spoil(monkeypatch: pytest.MonkeyPatch, spoilers: dict[str, Callable[[Any], Any]]) -> None:
    """Alter the records of the items with these `pk` as they come over the wire."""
    read = DynamoDBStreams.read

    def altered(self: DynamoDBStreams, iterator: str) -> Page:
        page = read(self, iterator)
        return replace(page, records=[_spoilt(raw, spoilers) for raw in page.records])

    monkeypatch.setattr(DynamoDBStreams, "read", altered)


def _spoilt(raw: msgspec.Raw, spoilers: dict[str, Callable[[Any], Any]]) -> msgspec.Raw:
    record = json.loads(bytes(raw))
    change = spoilers.get(record["dynamodb"]["Keys"]["pk"]["S"])
    if change is None:
        return raw
    change(record)
    return msgspec.Raw(json.dumps(record).encode())
