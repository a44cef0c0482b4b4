"""The simulator: the service over HTTP on a free local port, and what tests do with it."""

import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

import msgspec

from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.faults import Call, Faults, Reply, error_reply
from cdc_pipeline_tests.simulators.items import Item, key_of
from cdc_pipeline_tests.simulators.streams_model import (
    REGION,
    Clock,
    Record,
    Shard,
    Stream,
    StreamsModel,
    Table,
)
from cdc_pipeline_tests.simulators.streams_service import ServiceError, StreamsService

_RESET = struct.pack("ii", 1, 0)
_SERVICES = {"Kinesis_20131202": "kinesis:", "GraniteServiceVersion20100801": "cloudwatch:"}
"""Those of X-Amz-Target whose operations have their service before their names."""


@dataclass(frozen=True)
class Request:
    """A call that was made: its operation, the shard it was about, or whose children it asked."""

    operation: str
    shard_id: str | None
    children_of: str | None = None


class StreamsSimulator:
    """DynamoDB Streams of one account. Safe to use from several threads.

    `clock`: any callable giving seconds since the epoch. `seed`: of all random choices, the
    faults' included. `strict_trim`, `exact_bounds`: see the package's docstring.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        seed: int = 0,
        strict_trim: bool = True,
        exact_bounds: bool = True,
    ) -> None:
        self.clock = clock or SimulatedClock()
        self.faults = Faults(seed)
        self.requests: list[Request] = []
        self._model = StreamsModel(self.clock, seed, exact_bounds=exact_bounds)
        self._service = StreamsService(self._model, strict_trim=strict_trim)
        self._lock = threading.RLock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._errors: list[BaseException] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.stop()
        if self._errors and error is None:
            raise RuntimeError("the simulator failed to answer") from self._errors[0]

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """Variables that point any AWS client at this simulator and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "simulator",
            "AWS_SECRET_ACCESS_KEY": "simulator",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    # -------------------------------------------------------------------------------- tables

    def create_table(
        self,
        name: str,
        *,
        key: Sequence[str] = ("pk",),
        view_type: str | None = "NEW_AND_OLD_IMAGES",
        shards: int = 4,
        backups: bool = True,
    ) -> None:
        """Create a table; `view_type` None: without a stream."""
        with self._lock:
            self._model.create_table(name, key, view_type, shards, backups)

    def serve_as(self, name: str, table_id: str, stream_arn: str) -> None:
        """Give a table and its stream the ids that another AWS tells of them.

        For a client whose DynamoDB is elsewhere and whose Streams are here.
        """
        with self._lock:
            table, stream = self._model.tables[name], self._stream(name)
            self._model.streams[stream_arn] = self._model.streams.pop(stream.arn)
            table.table_id, stream.arn = table_id, stream_arn

    def delete_table(self, name: str) -> None:
        with self._lock:
            self._model.delete_table(name)

    def recreate_table(self, name: str) -> None:
        """Delete a table and create it again as it was, empty: another id, another stream."""
        with self._lock:
            old = self._model.tables[name]
            stream = old.active_stream
            shards = len(stream.open_shards()) if stream else 0
            self._model.delete_table(name)
            view_type = stream.view_type if stream else None
            self._model.create_table(name, old.key_names, view_type, shards, old.backups)

    def make_global(self, name: str, *regions: str, strong: bool = False) -> None:
        """Describe a table as a global one with replicas there; nothing is replicated."""
        with self._lock:
            table = self._model.tables[name]
            table.replicas, table.strongly_consistent = regions, strong

    def disable_stream(self, name: str) -> None:
        with self._lock:
            self._stream(name).disable()

    def enable_stream(
        self, name: str, *, view_type: str = "NEW_AND_OLD_IMAGES", shards: int = 4
    ) -> None:
        with self._lock:
            self._model.enable_stream(name, view_type, shards)

    # -------------------------------------------------------------------------------- writes

    def put(self, table: str, item: Item) -> Record | None:
        """Write a typed item (binary as bytes or base64 text); None if it changed nothing."""
        with self._lock:
            key = key_of(item, self._model.tables[table].key_names)
            # Through JSON, so that a record's key is as it is on the wire, and nobody else's.
            return self._model.write(table, msgspec.json.decode(msgspec.json.encode(key)), item)

    def delete(self, table: str, key: Item, *, by_ttl: bool = False) -> Record | None:
        """Delete the item of a typed key (an item will do); None if there was none."""
        with self._lock:
            key = key_of(key, self._model.tables[table].key_names)
            key = msgspec.json.decode(msgspec.json.encode(key))
            return self._model.write(table, key, None, by_ttl=by_ttl)

    def spoil(self, record: Record, change: Callable[[Any], object]) -> None:
        """Serve `change(record as parsed JSON)` in place of a record that was written."""
        wire = msgspec.json.encode(change(msgspec.json.decode(record.wire)))
        with self._lock:
            shard = self._model.streams[record.stream_arn].shards[record.shard_id]
            index = next(i for i, other in enumerate(shard.records) if other is record)
            shard.replace(index, wire)

    # -------------------------------------------------------------------------------- shards

    def rotate(self, table: str, shard_id: str | None = None) -> list[str]:
        """Close one open shard, or all, and open a child for each; the children's ids."""
        with self._lock:
            stream = self._stream(table)
            closing = stream.open_shards() if shard_id is None else [stream.shards[shard_id]]
            return [child.shard_id for s in closing for child in stream.replace(s, 1)]

    def split(self, table: str, shard_id: str) -> list[str]:
        """Close an open shard and give each half of its hash range to a child; their ids."""
        with self._lock:
            stream = self._stream(table)
            return [child.shard_id for child in stream.replace(stream.shards[shard_id], 2)]

    def close_shard(self, table: str, shard_id: str) -> None:
        """Close an open shard without a child; writes to its hash range fail from now on."""
        with self._lock:
            stream = self._stream(table)
            stream.close(stream.shards[shard_id])

    def list_late(self, whole: float, children: float | None = None) -> None:
        """Show shards that have a parent only so many seconds after they began.

        `children`: when that one's children are asked for, None: as late.
        """
        with self._lock:
            self._model.lags = (whole, whole if children is None else children)

    def open_shards(self, table: str) -> list[str]:
        """The ids of the open shards, by hash range."""
        with self._lock:
            return [shard.shard_id for shard in self._stream(table).open_shards()]

    def shards(self, table: str) -> list[Shard]:
        """Every shard that the table's present stream has had, trimmed ones included."""
        with self._lock:
            return list(self._stream(table).shards.values())

    # ----------------------------------------------------------------------------- the truth

    def records(self, table: str) -> list[Record]:
        """Every record ever written under a table's name, in the order of the writes."""
        with self._lock:
            return list(self._model.records[table])

    def items(self, table: str) -> list[Item]:
        """The table's items now."""
        with self._lock:
            return self._model.tables[table].items()

    def table_id(self, table: str) -> str:
        with self._lock:
            return self._model.tables[table].table_id

    def stream_arn(self, table: str) -> str:
        """The ARN of the table's latest stream."""
        with self._lock:
            return self._stream(table).arn

    def _stream(self, table: str) -> Stream:
        found: Table = self._model.tables[table]
        if found.stream is None:
            raise ValueError(f"table {table} never had a stream")
        return found.stream

    # -------------------------------------------------------------------------------- answers

    def answer(self, operation: str, body: bytes) -> Reply:
        """Answer one request: as the service does, or as the faults will have it."""
        request = msgspec.json.decode(body) if body else {}
        shard_id = self._service.shard_of(request)
        children_of = request.get("ShardFilter", {}).get("ShardId")
        self.requests.append(Request(operation, shard_id, children_of))
        try:
            if not self.faults.on:
                return self._serve(operation, request)
            call = Call(operation, request, shard_id, lambda r: self._serve(operation, r))
            return self.faults.answer(call, body)
        except Exception as error:  # noqa: BLE001 - raised again when the simulator is left
            self.failed(error)
            return error_reply(400, "Simulator", f"{type(error).__name__}: {error}")

    def get(self, path: str) -> Reply:
        """Answer a GET, such as S3's of a simulator that has it."""
        return Reply(404, b"")

    def failed(self, error: BaseException) -> None:
        """The simulator itself went wrong; leaving it raises this."""
        self._errors.append(error)

    def _serve(self, operation: str, request: dict[str, Any]) -> Reply:
        try:
            with self._lock:
                answer = self._service.answer(operation, request)
        except ServiceError as error:
            return error_reply(error.status, error.kind, error.message)
        if operation.rpartition(":")[2] != "GetRecords":
            return Reply(200, msgspec.json.encode(answer))
        records, rest = answer
        tail = b"," + msgspec.json.encode(rest)[1:] if rest else b"}"
        return Reply(200, b'{"Records":[' + b",".join(records) + b"]" + tail)


class _Server(ThreadingHTTPServer):
    # Joined when the simulator is left: a thread of its own would outlive the test.
    daemon_threads = False
    request_queue_size = 256

    def __init__(self, simulator: StreamsSimulator) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.simulator = simulator
        self.connections: set[Any] = set()
        self.guard = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.guard:
            self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.guard:
            self.connections.discard(request)
        try:
            linger = request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET))
        except OSError:
            linger = b""
        if linger == _RESET:
            request.close()
        else:
            super().shutdown_request(request)

    def stop(self) -> None:
        """End connections that clients keep open, and the threads that serve them."""
        with self.guard:
            connections = list(self.connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was faster
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.simulator.failed(error)
        # Clients hang up when they like: nothing to report.


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        service, _, operation = self.headers.get("X-Amz-Target", "").partition(".")
        assert isinstance(self.server, _Server)
        reply = self.server.simulator.answer(_SERVICES.get(service, "") + operation, body)
        self._send(reply, with_crc=service.startswith("DynamoDB_"))

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self._send(self.server.simulator.get(unquote(self.path.partition("?")[0])))

    def _send(self, reply: Reply, *, with_crc: bool = False) -> None:
        if reply.reset == "before headers":
            self._reset()
            return
        sent = reply.body if reply.keep is None else reply.body[: reply.keep]
        declared = len(sent if reply.honest_length else reply.body)
        lines = [
            f"HTTP/1.1 {reply.status} {self.responses[reply.status][0]}",
            "Server: Server",
            "Content-Type: application/x-amz-json-1.0",
            f"Content-Length: {declared}",
            "x-amzn-RequestId: SIMULATOR",
        ]
        if with_crc:
            lines.append(f"x-amz-crc32: {zlib.crc32(reply.body)}")
        if reply.etag is not None:
            lines.append(f"ETag: {reply.etag}")
        head = "\r\n".join([*lines, "", ""]).encode()
        if reply.reset == "after headers":
            self.wfile.write(head)
            self._reset()
            return
        self.wfile.write(head)
        self.wfile.write(sent)
        if declared != len(sent):
            self.close_connection = True

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
