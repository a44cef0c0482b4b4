"""A proxy before an AWS endpoint: records which IAM actions the requests need, or denies them.

It is a reverse proxy, one that clients name as HTTP_PROXY, and a tunnel (CONNECT) to named hosts.
"""

import http.client
import json
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_SCOPE = re.compile(r"Credential=[^/]+/[0-9]+/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request")
_PREFIXES = {"monitoring": "cloudwatch"}
"""Of IAM's actions, where it is not the name that requests are signed for."""
_DELETED = re.compile(r"<Object>.*?</Object>", re.DOTALL)
_RESOURCES = ("TableArn", "TableName", "StreamArn", "ExportArn", "StreamARN", "StreamName")

_ABSOLUTE = re.compile(r"https?://[^/]*")
"""What a request to a proxy has before its path."""

Answer = tuple[int, dict[str, str], str]
"""Status, headers and body."""
Refuse = Callable[[str, str, Any], Answer | None]
"""By method, path and headers; None lets the request through."""
Observed = tuple[str, str]
"""An action such as `s3:GetObject` and what it is done to; '' where a request does not tell."""


class Recorder:
    """Forwards every request to `endpoint_url` and keeps the actions; a context manager.

    Requests that need one of the actions in `denied` are answered as AWS does for want of it;
    those that `refuse` has an answer for, with that. `agents`: who asked, by User-Agent.
    `tunnels`: addresses of hosts, by `host:port`. `certificate`: paths of a certificate and its
    key, to speak TLS.
    """

    def __init__(
        self,
        endpoint_url: str,
        *,
        refuse: Refuse = lambda *_: None,
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        self.observed: set[Observed] = set()
        self.denied: set[str] = set()
        self.agents: Counter[str] = Counter()
        self.tunnels: dict[str, tuple[str, int]] = {}
        self.refuse = refuse
        self._lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, endpoint_url))
        self._server.daemon_threads = True
        self.address = ("127.0.0.1", int(self._server.server_address[1]))
        scheme = "http"
        if certificate:
            context, scheme = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "https"
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.endpoint_url = f"{scheme}://127.0.0.1:{self.address[1]}"

    def __enter__(self) -> "Recorder":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def record(self, actions: Iterator[Observed]) -> str | None:
        """Add what one request needs; the action that it is denied for, if any."""
        needed = set(actions)
        with self._lock:
            self.observed |= needed
        return next((action for action, _ in sorted(needed) if action in self.denied), None)


def _handler(recorder: Recorder, endpoint_url: str) -> type[BaseHTTPRequestHandler]:
    upstream = urlsplit(endpoint_url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        def forward(self) -> None:
            body = self._body()
            self.path = _ABSOLUTE.sub("", self.path) or "/"
            agent = self.headers.get("User-Agent", "")
            recorder.agents["pyarrow" if "aws-sdk-cpp" in agent else "boto3"] += 1
            refused = recorder.refuse(self.command, self.path, self.headers)
            if refused is not None:
                self._answer(*refused)
                return
            denied = recorder.record(actions_of(self.command, self.path, self.headers, body))
            if denied:
                self._deny(denied)
                return
            connection = http.client.HTTPConnection(upstream, timeout=120)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def do_CONNECT(self) -> None:
            there = recorder.tunnels.get(self.path)
            if there is None:
                self.send_error(502)
                return
            recorder.agents["tunnel"] += 1
            self.close_connection = True
            with socket.create_connection(there) as upstream:
                self.send_response_only(200)
                self.end_headers()
                back = Thread(target=_pump, args=(upstream, self.connection), daemon=True)
                back.start()
                _pump(self.connection, upstream)
                back.join(5)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _deny(self, action: str) -> None:
            message = f"User: arn:aws:iam::1:role/r is not authorized to perform: {action}"
            if "X-Amz-Target" in self.headers:
                status, kind = 400, "application/x-amz-json-1.0"
                content = json.dumps({"__type": "AccessDeniedException", "message": message})
            else:
                status, kind = 403, "text/xml"
                content = f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>"
                if not action.startswith("s3:"):
                    content = f"<ErrorResponse>{content}</ErrorResponse>"
            self._answer(status, {"Content-Type": kind}, content)

        def _answer(self, status: int, headers: dict[str, str], content: str) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content.encode())

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            return b"".join(parts)

    return Handler


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def actions_of(method: str, path: str, headers: Any, body: bytes) -> Iterator[Observed]:
    """The IAM actions that a signed request needs (AWS's service authorization reference)."""
    scope = _SCOPE.search(headers.get("Authorization", ""))
    if scope is None:
        raise ValueError(f"{method} {path} is not signed, so its service is unknown")
    service = _PREFIXES.get(scope["service"], scope["service"])
    if service == "s3":
        yield from _s3(method, path, headers, body)
        return
    target = headers.get("X-Amz-Target")
    if target is None:
        said = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        yield f"{service}:{said['Action']}", said.get("TopicArn") or said.get("RoleArn", "")
        return
    action = f"{service}:{target.rpartition('.')[2]}"
    said = json.loads(body or b"{}")
    if service == "glue":
        table = said.get("TableName") or said.get("Name") or said.get("TableInput", {}).get("Name")
        yield action, "/".join(filter(None, (said.get("DatabaseName"), table)))
    elif "RequestItems" in said:
        for table in said["RequestItems"]:
            yield action, table
    else:
        yield action, next((said[name] for name in _RESOURCES if name in said), "")


def _s3(method: str, path: str, headers: Any, body: bytes) -> Iterator[Observed]:
    """`bucket` or `bucket/key` is the resource."""
    parts = urlsplit(path)
    resource = unquote(parts.path).strip("/") if "/" in parts.path[1:] else parts.path[1:]
    query = parse_qs(parts.query, keep_blank_values=True)
    if "/" not in resource:
        yield from _s3_bucket(method, resource, query, body)
        return
    version = "Version" if "versionId" in query else ""
    if method in ("GET", "HEAD"):
        yield f"s3:GetObject{version}", resource
    elif method == "DELETE":
        name = "AbortMultipartUpload" if "uploadId" in query else f"DeleteObject{version}"
        yield f"s3:{name}", resource
    else:
        yield "s3:PutObject", resource
        if source := headers.get("x-amz-copy-source"):
            yield "s3:GetObject", unquote(source).strip("/")


def _s3_bucket(method: str, bucket: str, query: Any, body: bytes) -> Iterator[Observed]:
    if method == "POST" and "delete" in query:
        for match in _DELETED.findall(body.decode()):
            version = "Version" if "<VersionId>" in match else ""
            key = re.search("<Key>(.*?)</Key>", match)
            assert key is not None  # S3 demands it
            yield f"s3:DeleteObject{version}", f"{bucket}/{key[1]}"
        return
    names = {
        "versions": "ListBucketVersions",
        "uploads": "ListBucketMultipartUploads",
        "location": "GetBucketLocation",
        "versioning": "GetBucketVersioning",
        "encryption": "GetEncryptionConfiguration",
    }
    name = next((names[key] for key in names if key in query), "ListBucket")
    yield (f"s3:{name}" if method in ("GET", "HEAD") else "s3:CreateBucket"), bucket
