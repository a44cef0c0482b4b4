"""S3 over HTTP, as far as it is read: objects, parts of them, listings, and what breaks them.

with S3Simulator({"lake/a": b"..."}) as sim:
    sim.faults.script("GetObject", faults.cut(), faults.reset(after_headers=True))
"""

import hashlib
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from cdc_pipeline_tests.simulators.faults import Call, Faults, Reply

BUCKET = "bucket"
_PAGE = 3
"""Keys on a page of a listing: small, so that tests see several."""


class S3Simulator:
    """One bucket, filled by its test; `asked` has each GetObject's range ('' for a whole one)."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = dict(objects)
        self.faults = Faults()
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, headers: Any) -> Reply:
        split = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        key = unquote(split.path).removeprefix(f"/{BUCKET}").lstrip("/")
        wanted = {"key": key, "range": headers.get("Range", ""), **query}
        wanted["match"] = headers.get("If-Match", "")
        operation = "GetObject" if key else "ListObjectsV2"
        service = self._get if key else self._list
        return self.faults.answer(Call(operation, wanted, None, service), path.encode())

    def _get(self, wanted: dict[str, Any]) -> Reply:
        self.asked.append(wanted["range"])
        data = self.objects.get(wanted["key"])
        if data is None:
            return _error(404, "NoSuchKey")
        if wanted["match"] not in ("", etag(data)):
            return _error(412, "PreconditionFailed")
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted["range"])
        if part is None:
            return Reply(200, data)
        end = int(part[2]) + 1 if part[2] else len(data)
        return Reply(206, data[int(part[1]) : end])

    def _list(self, wanted: dict[str, Any]) -> Reply:
        after = wanted.get("continuation-token") or wanted.get("start-after", "")
        keys = [k for k in sorted(self.objects) if k.startswith(wanted.get("prefix", ""))]
        left = [key for key in keys if key > after]
        page = left[:_PAGE]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            f"<ETag>{escape(etag(self.objects[key]))}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in page
        )
        more = len(left) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        text = (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{contents}{token}"
            "</ListBucketResult>"
        )
        return Reply(200, text.encode())


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _error(status: int, code: str) -> Reply:
    return Reply(status, f"<Error><Code>{code}</Code><Message>simulated</Message></Error>".encode())


def _handler(simulator: S3Simulator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply = simulator.answer(self.path, self.headers)
            if reply.reset == "before headers":
                self._reset()
                return
            sent = reply.body if reply.keep is None else reply.body[: reply.keep]
            declared = len(sent if reply.honest_length else reply.body)
            self.send_response(reply.status)
            self.send_header("Content-Length", str(declared))
            self.send_header("ETag", etag(simulator.objects.get(self._key(), b"")))
            self.end_headers()
            if reply.reset:
                self._reset()
                return
            self.wfile.write(sent)
            self.close_connection = declared != len(sent)

        def _key(self) -> str:
            return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")

        def _reset(self) -> None:
            """Close with RST instead of FIN."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            pass

    return Handler
