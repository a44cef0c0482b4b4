"""Preflight warns of bulk puts on a table, if botocore knows the call that lists them."""

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.loaders import Loader

from cdc_pipeline.aws.table import describe_table
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.settings.table import Table
from cdc_pipeline.setup.checks.bulk_puts import check_bulk_puts
from cdc_pipeline.setup.checks.findings import Finding
from cdc_pipeline_tests.simulators.clients import session, use
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator
from cdc_pipeline_tests.simulators.streams_service import ServiceError

_BEGUN = 1_780_000_000
_TEXTS = ("BulkOperationArn", "TableName", "NextToken")


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamsSimulator]:
    with StreamsSimulator() as simulator:
        use(simulator, monkeypatch)
        simulator.create_table("orders")
        yield simulator


@pytest.fixture
def newer_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore with the two calls, as far as they are used, as 1.44.8's model has them."""
    load = Loader.load_service_model

    def with_calls(loader: Any, service: str, type_name: str, api_version: Any = None) -> Any:
        model = load(loader, service, type_name, api_version)
        if (service, type_name) == ("dynamodb", "service-2"):
            model["shapes"].update(_shapes())
            for name in ("ListBulkOperations", "DescribeBulkOperation"):
                model["operations"][name] = {
                    "name": name,
                    "http": {"method": "POST", "requestUri": "/"},
                    "input": {"shape": f"{name}Input"},
                    "output": {"shape": f"{name}Output"},
                }
        return model

    monkeypatch.setattr(Loader, "load_service_model", with_calls)


def _shapes() -> dict[str, Any]:
    def structure(**members: str) -> dict[str, Any]:
        return {"type": "structure", "members": {n: {"shape": s} for n, s in members.items()}}

    def list_of(shape: str) -> dict[str, Any]:
        return {"type": "list", "member": {"shape": shape}}

    texts = {f"Bulk{name}": {"type": "string"} for name in _TEXTS}
    ended = {"EndTime": "BulkTime", "StartTime": "BulkTime"}
    return texts | {
        "BulkTime": {"type": "timestamp"},
        "ListBulkOperationsInput": structure(NextToken="BulkNextToken"),
        "ListBulkOperationsOutput": structure(
            BulkOperationsSummaryList="BulkSummaries", NextToken="BulkNextToken"
        ),
        "BulkSummaries": list_of("BulkSummary"),
        "BulkSummary": structure(BulkOperationArn="BulkBulkOperationArn", **ended),
        "DescribeBulkOperationInput": structure(BulkOperationArn="BulkBulkOperationArn"),
        "DescribeBulkOperationOutput": structure(BulkOperationDescription="BulkDescription"),
        "BulkDescription": structure(TableDetails="BulkTables", **ended),
        "BulkTables": list_of("BulkTable"),
        "BulkTable": structure(TableName="BulkTableName"),
    }


def _answers(
    sim: StreamsSimulator, monkeypatch: pytest.MonkeyPatch, operations: dict[str, dict[str, Any]]
) -> list[str]:
    """Let DynamoDB tell of bulk operations, one a page; which were described."""
    described: list[str] = []
    serve = sim._service.answer

    def answer(operation: str, request: dict[str, Any]) -> Any:
        if operation == "ListBulkOperations":
            names, at = list(operations), int(request.get("NextToken", 0))
            page = [{"BulkOperationArn": n, **_times(operations[n])} for n in names[at : at + 1]]
            more = {"NextToken": str(at + 1)} if at + 1 < len(names) else {}
            return {"BulkOperationsSummaryList": page, **more}
        if operation == "DescribeBulkOperation":
            described.append(request["BulkOperationArn"])
            return {"BulkOperationDescription": operations[described[-1]]}
        return serve(operation, request)

    monkeypatch.setattr(sim._service, "answer", answer)
    return described


def _times(operation: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in operation.items() if name.endswith("Time")}


def _look(sim: StreamsSimulator, baseline_us: int | None) -> Finding | None:
    aws = session(sim)
    state = LogState()
    if baseline_us is not None:
        state.baselines[0] = Baseline(0, 0, baseline_us, snapshot_id=1, staged_us=baseline_us)
    described = describe_table(aws, "orders")
    return check_bulk_puts(aws, Table.model_validate({"name": "orders"}), described, lambda: state)


def test_a_botocore_without_the_call_says_nothing(sim: StreamsSimulator) -> None:
    assert _look(sim, None) is None


@pytest.mark.usefixtures("newer_botocore")
def test_those_since_the_newest_baseline_are_told(
    sim: StreamsSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = describe_table(session(sim), "orders").arn
    operations = {
        "old": {"StartTime": 1, "EndTime": 2, "TableDetails": [{"TableName": ours}]},
        "other": {
            "StartTime": _BEGUN,
            "EndTime": _BEGUN + 9,
            "TableDetails": [{"TableName": ours.replace("orders", "others")}],
        },
        "ours": {
            "StartTime": _BEGUN,
            "EndTime": _BEGUN + 60,
            "TableDetails": [{"TableName": ours}],
        },
        "going on": {"StartTime": _BEGUN + 3600, "TableDetails": [{"TableName": "orders"}]},
    }
    described = _answers(sim, monkeypatch, operations)
    found = _look(sim, (_BEGUN + 30) * 1_000_000)
    assert found is not None
    assert found.green
    assert "warning: 2 since the newest baseline" in found.found
    assert "the last begun 2026-05-28 21:26:40" in found.found
    assert "cdc-pipeline reconcile --full orders" in found.found
    assert described == ["ours", "going on"]
    del operations["going on"]
    later = _look(sim, (_BEGUN + 61) * 1_000_000)
    assert later is not None
    assert later.found == "none since the newest baseline"


@pytest.mark.usefixtures("newer_botocore")
def test_who_may_not_ask_is_told_so(sim: StreamsSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = sim._service.answer

    def answer(operation: str, request: dict[str, Any]) -> Any:
        if operation == "ListBulkOperations":
            raise ServiceError("AccessDeniedException", "not you")
        return serve(operation, request)

    monkeypatch.setattr(sim._service, "answer", answer)
    found = _look(sim, None)
    assert found is not None
    assert found.green
    assert found.found.startswith(
        "not known: ListBulkOperations or DescribeBulkOperation answers Acc"
    )
