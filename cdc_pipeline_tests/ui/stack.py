"""A sandbox with traffic and a real `dagster dev` on it, with all automation off."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import yaml

import cdc_pipeline
from cdc_pipeline.sandbox.demo.traffic import Traffic
from cdc_pipeline.sandbox.demo.transports import start_traffic
from cdc_pipeline.sandbox.demo.workspace import BUCKET, write_settings
from cdc_pipeline.sandbox.process import SandboxProcess, local_client
from cdc_pipeline.settings.load import PATH_VARIABLE

_T = TypeVar("_T")

DAYS = 4
ORDERS = 300
_CHANGES_PER_SECOND = 40
_START_SECONDS = 120
_STOP_SECONDS = 15
_ROOT = Path(cdc_pipeline.__file__).resolve().parents[1]
_DIRECT = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Stack:
    """What the test talks to besides the browser."""

    address: str
    traffic: Traffic

    def ask(self, query: str, **variables: Any) -> Any:
        """The data of a GraphQL answer."""
        return ask(self.address, query, **variables)


def ask(address: str, query: str, **variables: Any) -> Any:
    """The data of a GraphQL answer of the Dagster at `address`."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with _DIRECT.open(request, timeout=20) as response:
        answer = json.load(response)
    assert "errors" not in answer, answer["errors"]
    return answer["data"]


def wait_for(attempt: Callable[[], _T], what: str, seconds: float) -> _T:
    """The first true answer, or a failure that says what was waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = attempt()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds:g} s")


@contextmanager
def running_stack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """Everything up and the code location loaded; this process's environment points at it too."""
    with SandboxProcess(log_file=folder / "sandbox.log") as sandbox:
        enter(sandbox, _settings(folder), monkeypatch)
        client: Any = local_client("s3")
        client.create_bucket(Bucket=BUCKET)
        with dagster_dev(folder) as address:
            traffic = start_traffic(ORDERS, _CHANGES_PER_SECOND)
            try:
                stack = Stack(address, traffic)
                wait_for(lambda: is_loaded(address), "Dagster loads the assets", _START_SECONDS)
                yield stack
            finally:
                traffic.stop()


def _settings(folder: Path) -> Path:
    """Few days, so that "All" in the backfill dialog means a few partitions."""
    path = write_settings(folder, kind="s3", running=False)
    settings = yaml.safe_load(path.read_text("utf-8"))
    first = datetime.now(UTC).date() - timedelta(days=DAYS - 1)
    path.write_text(yaml.safe_dump(settings | {"start_date": first.isoformat()}), "utf-8")
    return path


def enter(sandbox: SandboxProcess, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process's environment at a sandbox and a settings file."""
    wanted = dict(os.environ)
    sandbox.apply_environment(wanted)
    for name in set(os.environ) - set(wanted):
        monkeypatch.delenv(name)
    for name, value in (wanted | {PATH_VARIABLE: str(settings)}).items():
        monkeypatch.setenv(name, value)


@contextmanager
def dagster_dev(
    folder: Path,
    *,
    command: Sequence[str] = ("dagster", "dev", "-m", "cdc_pipeline.definitions"),
    cwd: Path | None = None,
) -> Iterator[str]:
    """A `dagster dev` of this process's environment, kept in `folder`; its address."""
    home = folder / "dagster_home"
    home.mkdir(exist_ok=True)  # a second one goes on with the books of the first
    shutil.copy(_ROOT / "dagster.yaml", home)
    port = free_port()
    program = str(Path(sys.executable).with_name(command[0]))
    environment = os.environ | {"DAGSTER_HOME": str(home), "PYTHONPATH": str(_ROOT)}
    with (folder / "dagster.log").open("ab") as log:
        process = subprocess.Popen(
            [program, *command[1:], "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=cwd or folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does; then by force whatever is left of its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_loaded(address: str) -> bool:
    """Whether it knows the assets."""
    try:
        return bool(ask(address, "{ assetNodes { id } }")["assetNodes"])
    except (URLError, ConnectionError, TimeoutError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
