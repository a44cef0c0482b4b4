"""Ownership of records: the table named in a record, and its key attributes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from json.encoder import encode_basestring
from typing import Any

from cdc_pipeline.core.errors import UnreadableError

_OTHER_KEYS = "a record with other key attributes than the table has"
_TABLE_ARN = re.compile(r"arn:[^:]+:dynamodb:[^:]+:[^:]+:table/([^/]+)(?:/stream/.+)?").fullmatch


def table_named_by(record: Mapping[str, Any]) -> str:
    """Return the table named in a record, by name or by its stream's ARN; empty: none."""
    source = record.get("eventSourceARN")
    match = _TABLE_ARN(source) if isinstance(source, str) else None
    return match[1] if match else str(record.get("tableName") or "")


@dataclass(frozen=True)
class Target:
    """The captured table. `key_types`: S, N or B by key attribute; empty: unknown.

    `arn`: empty if unknown; then only the table name in an ARN is compared.
    """

    name: str
    table_id: str
    key_types: Mapping[str, str]
    arn: str = field(default="")

    def is_of_another(self, record: Mapping[str, Any]) -> bool:
        """Whether a record names another table, as `tableName` or in `eventSourceARN`.

        Kinesis and Firehose may carry several tables. A record without a table name counts as the
        table's if it has its keys. Raises `UnreadableError` for a malformed name.
        """
        name, source = record.get("tableName"), record.get("eventSourceARN")
        if source is not None and not (isinstance(source, str) and _TABLE_ARN(source)):
            raise UnreadableError("a record whose eventSourceARN is not that of a table's stream")
        if name is not None and not isinstance(name, str):
            raise UnreadableError("a record whose tableName is no text")
        if source is not None and self._names_another(source):
            return True
        return name is not None and name != self.name

    def _names_another(self, source: str) -> bool:
        if self.arn:
            return source.partition("/stream/")[0] != self.arn
        match = _TABLE_ARN(source)
        return match is not None and match[1] != self.name

    @cached_property
    def _has_keys(self) -> Callable[[str], Any]:
        """Match canonical typed JSON with exactly the table's key attributes, of their types."""
        parts = (
            rf'"{re.escape(encode_basestring(name)[1:-1])}":\{{"{kind}":"(?:[^"\\]|\\.)*"\}}'
            for name, kind in sorted(self.key_types.items())
        )
        return re.compile(rf"\{{{','.join(parts)}\}}", re.DOTALL).fullmatch

    def require_keys(self, keys: str) -> None:
        """Raise `UnreadableError` for canonical keys that do not match the table's key schema."""
        if self.key_types and not self._has_keys(keys):
            raise UnreadableError(_OTHER_KEYS)
