"""The function in the template: tells a stack its table's id, and answers whatever happens."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cdc_pipeline_tests.infra.template import Stack

_ID = "0f3c1a2b-0000-4000-8000-00000000c0de"


class _Aws(BaseHTTPRequestHandler):
    """DynamoDB with one table, and the place where CloudFormation takes answers."""

    answers: list[dict[str, Any]]

    def do_POST(self) -> None:
        asked = json.loads(self._body())
        if asked["TableName"] == "orders":
            self._send(200, {"Table": {"TableName": "orders", "TableId": _ID}})
        else:
            kind = "com.amazonaws.dynamodb.v20120810#ResourceNotFoundException"
            self._send(400, {"__type": kind, "message": "no such table"})

    def do_PUT(self) -> None:
        # S3's presigned address was signed without a content type.
        assert self.headers["content-type"] == ""
        self.answers.append(json.loads(self._body()))
        self._send(200, {})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["content-length"]))

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    _Aws.answers = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Aws) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        yield address
        server.shutdown()


def _ask(aws: str, table: str, request: str = "Create") -> dict[str, Any]:
    """What the stack is told by the code that stands in the template."""
    code: dict[str, Any] = {}
    exec(Stack().properties("TableIdFunction")["Code"]["ZipFile"], code)
    ids = {"StackId": "stack", "RequestId": "request", "LogicalResourceId": "TableId"}
    code["handler"](
        {
            **ids,
            "RequestType": request,
            "ResponseURL": f"{aws}/answer?signature=x",
            "ResourceProperties": {"TableName": table},
        },
        None,
    )
    (answer,) = _Aws.answers
    assert answer.items() >= ids.items()
    assert answer["PhysicalResourceId"] == table
    return answer


def test_the_stack_learns_the_id_of_its_table(aws: str) -> None:
    answer = _ask(aws, "orders")
    assert (answer["Status"], answer["Data"]) == ("SUCCESS", {"TableId": _ID})


def test_a_table_that_is_not_there_fails_the_stack_at_once(aws: str) -> None:
    answer = _ask(aws, "orderz")
    assert answer["Status"] == "FAILED"
    assert "table orderz" in answer["Reason"]
    assert "ResourceNotFound" in answer["Reason"]


def test_a_stack_whose_table_is_gone_can_be_deleted(aws: str) -> None:
    assert _ask(aws, "orderz", "Delete")["Status"] == "SUCCESS"
