"""CloudFormation's DynamoDB tables: recovery, time to live and the Kinesis stream.

ministack 1.5.33 creates the table but ignores these three properties.
"""

from collections.abc import Callable
from typing import Any

_HANDLED = "AWS::DynamoDB::Table"


class Stacks:
    """Applies the properties ignored by the emulator, with the same operations as AWS."""

    def __init__(self, emulator: Any, dynamodb: Any) -> None:
        self._emulator = emulator
        self._dynamodb = dynamodb
        self._installed = False

    def install(self) -> None:
        """Replace the emulator's functions at first use of CloudFormation; once per process.

        CloudFormation imports every other service and DuckDB, which most sandboxes never need.
        """
        load = self._emulator._get_module

        def get_module(name: str) -> Any:
            module = load(name)
            if name == "cloudformation" and not self._installed:
                self._installed = True
                self._replace()
            return module

        self._emulator._get_module = get_module

    def _replace(self) -> None:
        from ministack.services.cloudformation import provisioners as module

        create, update = module._ddb_create, module._ddb_update
        handlers = module._RESOURCE_HANDLERS[_HANDLED]
        # An update that replaces the table calls the module's own `_ddb_create`.
        module._ddb_create = handlers["create"] = self._creating(create)
        handlers["update"] = self._updating(update)
        module._ddb_delete = handlers["delete"] = self._delete

    def _creating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def create(logical_id: str, properties: dict[str, Any], stack_name: str) -> Any:
            made = original(logical_id, properties, stack_name)
            self._apply(made[0], {}, properties)
            return made

        return create

    def _updating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def update(name: str, old: dict[str, Any], new: dict[str, Any], *rest: Any, **named: Any):
            table = self._dynamodb._tables.get(name)
            updated = original(name, old, new, *rest, **named)
            if self._dynamodb._tables.get(updated[0]) is table:
                self._apply(updated[0], old, new)
            return updated

        return update

    def _delete(self, name: str, properties: dict[str, Any]) -> None:
        if name in self._dynamodb._tables:
            self._carry_out("delete_table", {"TableName": name})

    def _apply(self, name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Apply the properties of `new` that differ from `old` to the table."""
        table = {"TableName": name}
        recovery = "PointInTimeRecoverySpecification"
        if old.get(recovery) != new.get(recovery):
            specification = _recovery(new.get(recovery) or {})
            self._carry_out("update_continuous_backups", {**table, recovery: specification})
        if old.get("TimeToLiveSpecification") != new.get("TimeToLiveSpecification"):
            self._carry_out("update_ttl", {**table, **_time_to_live(old, new)})
        self._stream(table, *(p.get("KinesisStreamSpecification") or {} for p in (old, new)))

    def _stream(self, table: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
        precision = "ApproximateCreationDateTimePrecision"
        configuration = {precision: new[precision]} if precision in new else {}
        target = {**table, "StreamArn": new.get("StreamArn")}
        if old.get("StreamArn") == new.get("StreamArn"):
            if old != new:
                request = {**target, "UpdateKinesisStreamingConfiguration": configuration}
                self._carry_out("update_kinesis_streaming_destination", request)
            return
        if old:
            gone = {**table, "StreamArn": old["StreamArn"]}
            self._carry_out("disable_kinesis_streaming_destination", gone)
        if new:
            request = {**target, "EnableKinesisStreamingConfiguration": configuration}
            self._carry_out("enable_kinesis_streaming_destination", request)

    def _carry_out(self, operation: str, request: dict[str, Any]) -> None:
        status, _, body = getattr(self._dynamodb, f"_{operation}")(request)
        if status >= 400:
            raise ValueError(f"{_HANDLED}: {bytes(body).decode(errors='replace')}")


def _recovery(specification: dict[str, Any]) -> dict[str, Any]:
    """Return the API's form of the property; values of a template may be text."""
    days = specification.get("RecoveryPeriodInDays")
    return {
        "PointInTimeRecoveryEnabled": _true(specification.get("PointInTimeRecoveryEnabled")),
        **({"RecoveryPeriodInDays": int(days)} if days else {}),
    }


def _time_to_live(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    name = "TimeToLiveSpecification"
    specification = new.get(name) or {**old[name], "Enabled": False}
    return {name: {**specification, "Enabled": _true(specification.get("Enabled"))}}


def _true(value: Any) -> bool:
    return str(value).lower() == "true"
