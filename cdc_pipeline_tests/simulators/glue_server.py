"""Glue over HTTP as AWS documents it where local AWSes differ: batch limits, pages, optimistic
locks, an error for each partition, and columns left out of listings.
"""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_BATCH = 100
_PAGE = 30
"""AWS's own pages are as large as it likes; small ones here, so that tests see several."""


class GlueError(Exception):
    """An answer with an error code."""


class GlueSimulator:
    """The tables and partitions of one account.

    `optimizers`: whether those of a table and type are enabled. `item_errors`: code by partition
    values, for batch calls to answer with, `times` times each.
    """

    def __init__(self) -> None:
        self.databases: set[str] = set()
        self.tables: dict[str, dict[str, Any]] = {}
        self.partitions: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.item_errors: dict[tuple[str, ...], str] = {}
        self.times: Counter[tuple[str, ...]] = Counter()
        self.before_update: list[Any] = []
        self.optimizers: dict[tuple[str, str], bool] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
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

    def fail(self, values: tuple[str, ...], code: str, times: int = 1_000) -> None:
        """Let batch calls answer with this error for a partition."""
        self.item_errors[values] = code
        self.times[values] = times

    def count(self, operation: str) -> int:
        return sum(called == operation for called, _ in self.calls)

    def answer(self, operation: str, said: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((operation, said))
        return getattr(self, f"_{operation}")(said)

    def _CreateDatabase(self, said: dict[str, Any]) -> dict[str, Any]:
        name = said["DatabaseInput"]["Name"]
        if name in self.databases:
            raise GlueError("AlreadyExistsException")
        self.databases.add(name)
        return {}

    def _CreateTable(self, said: dict[str, Any]) -> dict[str, Any]:
        if said["DatabaseName"] not in self.databases:
            raise GlueError("EntityNotFoundException")
        name = said["TableInput"]["Name"]
        if name in self.tables:
            raise GlueError("AlreadyExistsException")
        self.tables[name] = {**said["TableInput"], "VersionId": "0", "CreatedBy": "simulator"}
        self.partitions[name] = {}
        return {}

    def _GetTable(self, said: dict[str, Any]) -> dict[str, Any]:
        return {"Table": {**self._table(said["Name"]), "DatabaseName": said["DatabaseName"]}}

    def _UpdateTable(self, said: dict[str, Any]) -> dict[str, Any]:
        if self.before_update:
            self.before_update.pop()()
        table = self._table(said["TableInput"]["Name"])
        if said.get("VersionId", table["VersionId"]) != table["VersionId"]:
            raise GlueError("ConcurrentModificationException")
        version = str(int(table["VersionId"]) + 1)
        self.tables[table["Name"]] = {**said["TableInput"], "VersionId": version}
        return {}

    def _GetPartitions(self, said: dict[str, Any]) -> dict[str, Any]:
        self._table(said["TableName"])
        found = list(self.partitions[said["TableName"]].values())
        start = int(said.get("NextToken") or 0)
        page = [json.loads(json.dumps(one)) for one in found[start : start + _PAGE]]
        if said.get("ExcludeColumnSchema"):
            for one in page:
                one["StorageDescriptor"].pop("Columns", None)
        more = {"NextToken": str(start + _PAGE)} if start + _PAGE < len(found) else {}
        return {"Partitions": page, **more}

    def _BatchCreatePartition(self, said: dict[str, Any]) -> dict[str, Any]:
        self._require(said["TableName"], said["PartitionInputList"])
        there, errors = self.partitions[said["TableName"]], []
        for one in said["PartitionInputList"]:
            values = tuple(one["Values"])
            code = self._error(values) or ("AlreadyExistsException" if values in there else None)
            if code:
                errors.append({"PartitionValues": [*values], "ErrorDetail": {"ErrorCode": code}})
            else:
                there[values] = one
        return {"Errors": errors}

    def _BatchUpdatePartition(self, said: dict[str, Any]) -> dict[str, Any]:
        self._require(said["TableName"], said["Entries"])
        there, errors = self.partitions[said["TableName"]], []
        for entry in said["Entries"]:
            values = tuple(entry["PartitionValueList"])
            code = self._error(values)
            code = code or (None if values in there else "EntityNotFoundException")
            if code:
                errors.append({"PartitionValueList": [*values], "ErrorDetail": {"ErrorCode": code}})
            else:
                there[values] = entry["PartitionInput"]
        return {"Errors": errors}

    def _DeletePartition(self, said: dict[str, Any]) -> dict[str, Any]:
        there = self.partitions[said["TableName"]]
        if there.pop(tuple(said["PartitionValues"]), None) is None:
            raise GlueError("EntityNotFoundException")
        return {}

    def _table(self, name: str) -> dict[str, Any]:
        if name not in self.tables:
            raise GlueError("EntityNotFoundException")
        return self.tables[name]

    def _require(self, table: str, batch: list[Any]) -> None:
        self._table(table)
        if not 0 < len(batch) <= _BATCH:
            raise GlueError("ValidationException")

    def _BatchGetTableOptimizer(self, said: dict[str, Any]) -> dict[str, Any]:
        found, missing = [], []
        for entry in said["Entries"]:
            enabled = self.optimizers.get((entry["tableName"], entry["type"]))
            if enabled is None:
                missing.append({**entry, "error": {"ErrorCode": "EntityNotFoundException"}})
                continue
            optimizer = {"type": entry["type"], "configuration": {"enabled": enabled}}
            found.append({**entry, "tableOptimizer": optimizer})
        return {"TableOptimizers": found, "Failures": missing}

    def _error(self, values: tuple[str, ...]) -> str | None:
        if values not in self.item_errors or not self.times[values]:
            return None
        self.times[values] -= 1
        return self.item_errors[values]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        simulator, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                operation = self.headers["X-Amz-Target"].rpartition(".")[2]
                status = 200
                with lock:
                    try:
                        answer = simulator.answer(operation, json.loads(body))
                    except GlueError as error:
                        status, answer = 400, {"__type": str(error), "message": "as asked for"}
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
                pass

        return Handler
