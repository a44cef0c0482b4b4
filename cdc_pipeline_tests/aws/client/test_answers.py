"""Answers of DynamoDB whose CRC-32 is wrong are asked for again and never believed."""

import json
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from cdc_pipeline.aws.client.session import AwsSession, aws_errors
from cdc_pipeline.core.errors import SourceError

CALLS = {"dynamodb": "list_tables", "dynamodbstreams": "list_streams"}


class Damaging(HTTPServer):
    """Answers with the CRC-32 of another body `damaged` times, then with the right one."""

    damaged, asked = 0, 0


class _Handler(BaseHTTPRequestHandler):
    server: Damaging  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        body = json.dumps({"TableNames": [], "Streams": []}).encode()
        right = zlib.crc32(body)
        self.send_response_only(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        wrong = self.server.asked <= self.server.damaged
        self.send_header("x-amz-crc32", str(right ^ 1 if wrong else right))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Damaging]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    with Damaging(("127.0.0.1", 0), _Handler) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def ask(server: Damaging, service: str) -> object:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    client = AwsSession(region="us-east-1", endpoint_url=url).client(service)
    with aws_errors("the answer"):
        return getattr(client, CALLS[service])()


@pytest.mark.parametrize("service", CALLS)
def test_a_wrong_answer_is_asked_for_again(server: Damaging, service: str) -> None:
    server.damaged = 2
    assert ask(server, service)
    assert server.asked == 3


@pytest.mark.parametrize("service", CALLS)
def test_an_answer_that_stays_wrong_is_refused(server: Damaging, service: str) -> None:
    server.damaged = 100
    with pytest.raises(SourceError, match="crc32"):
        ask(server, service)
    assert server.asked == 6
