"""Opening catalogues that are not there: errors that help, and tell no secret."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest

from cdc_pipeline.core.errors import LakeError, SettingsError
from cdc_pipeline.lake.iceberg.catalog_rest import _Rest
from cdc_pipeline_tests.lake.builder import LakeBuilder

_SECRET = "hunter2-4711"
_ROWS = pa.table({"_key": ["a"]})


def _open(folder: Path, properties: dict[str, str], **more: Any) -> Any:
    catalog = {"properties": properties, **more}
    return LakeBuilder.at(folder, catalog=catalog).lake.iceberg


class _Refusing(BaseHTTPRequestHandler):
    """A REST catalogue: configuration is free, all else says no, or nothing at all."""

    status = 401

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path.startswith("/v1/config"):
            self._answer(200, {"defaults": {}, "overrides": {}})
        else:
            error = {"message": "no", "type": "NotAuthorizedException", "code": self.status}
            self._answer(self.status, {"error": error})

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_secret_that_the_environment_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CATALOG_TOKEN", raising=False)
    with pytest.raises(SettingsError, match="CATALOG_TOKEN"):
        _open(
            tmp_path, {"uri": "http://127.0.0.1:9"}, type="rest", secrets={"token": "CATALOG_TOKEN"}
        )


def test_a_rest_catalogue_that_is_away_or_says_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    monkeypatch.setenv("CATALOG_TOKEN", _SECRET)
    said: dict[str, Any] = {"type": "rest", "secrets": {"token": "CATALOG_TOKEN"}}
    with pytest.raises(LakeError) as away:
        _open(tmp_path, {"uri": "http://127.0.0.1:9"}, **said)
    assert "http://127.0.0.1:9 cannot be reached" in str(away.value)
    tables = _open(tmp_path, {"uri": refusing}, **said)
    assert isinstance(tables.catalog, _Rest)
    assert "X-Iceberg-Access-Delegation" not in tables.catalog._session.headers
    with pytest.raises(LakeError) as denied:
        tables.load("orders_cdc")
    assert "UnauthorizedError: NotAuthorizedException: no" in str(denied.value)
    assert _SECRET not in f"{away.value}{denied.value}"


def test_a_database_that_is_away_or_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, said in {
        f"mysql://app:{_SECRET}@127.0.0.1/x": "driver MySQLdb is not installed",
        f"nonsense {_SECRET}": "not a database URI",
        f"sqlite:////no-such-folder/{_SECRET}/x.db": "error of the database: unable to open",
    }.items():
        monkeypatch.setenv("CATALOG_URI", address)
        with pytest.raises(LakeError) as caught:
            _open(tmp_path, {}, type="sql", secrets={"uri": "CATALOG_URI"})
        assert said in str(caught.value)
        assert _SECRET not in str(caught.value)


def test_a_sqlite_file_at_a_place_of_its_own(tmp_path: Path) -> None:
    tables = _open(tmp_path, {"uri": f"sqlite:///{tmp_path / 'mine.db'}"}, type="sql")
    made = tables.replace("orders_cdc", _ROWS.to_reader(), {"after": "7"}, over=None)
    assert tables.is_placed(made)
    assert (tmp_path / "mine.db").exists()
    assert not (tmp_path / "lake" / "_cdc" / "catalog.db").exists()
    tables.catalog.close()
