"""Server of the sandbox: the corrected emulator in this process, on loopback only."""

import asyncio
import decimal
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdc_pipeline.sandbox.aws.control import PATH as CONTROL_PATH
from cdc_pipeline.sandbox.aws.control import Control, SandboxClock
from cdc_pipeline.sandbox.aws.dynamodb.journal import Clock
from cdc_pipeline.sandbox.aws.dynamodb.kinesis import Replication, Shards
from cdc_pipeline.sandbox.aws.dynamodb.streams import Writes, own_ttl
from cdc_pipeline.sandbox.aws.emr.operations import EmrServerless
from cdc_pipeline.sandbox.aws.encryption import install_managed_key
from cdc_pipeline.sandbox.aws.exports.files import multipart_put
from cdc_pipeline.sandbox.aws.exports.operations import Exports
from cdc_pipeline.sandbox.aws.exports.principals import ForeignBuckets, remember_caller
from cdc_pipeline.sandbox.aws.firehose.deliveries import Deliveries
from cdc_pipeline.sandbox.aws.firehose.kinesis_channels import Channels
from cdc_pipeline.sandbox.aws.stacks import Stacks
from cdc_pipeline.sandbox.errors import PortInUseError, SandboxError, SandboxNotInstalledError
from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.sandbox.process import apply_environment

HOST = "127.0.0.1"
# The corrections replace internals of the emulator; another version may not have them.
MINISTACK_VERSION = "1.5.33"

_logger = logging.getLogger(__name__)
# Read by ministack at import. Disables everything that would listen on another port, leave files
# behind or search for a container engine.
_EMULATOR_ENVIRONMENT = {
    "AUTH": "false",
    "BIND_HOST": HOST,
    "DOCKER_HOST": "unix:///nonexistent/docker.sock",
    "IOT_MTLS_ENABLED": "0",
    "LOCALSTACK_PERSISTENCE": "0",
    "LOG_LEVEL": "WARNING",
    "MINISTACK_ACCOUNT_ID": "000000000000",
    "MINISTACK_HOST": "localhost",
    "MINISTACK_REGION": "us-east-1",
    "PERSIST_STATE": "0",
    "S3_PERSIST": "0",
    "SFTP_ENABLED": "0",
    "USE_SSL": "0",
}
_EMULATOR_UNSET = ("EDGE_PORT", "SERVICES", "MINISTACK_SSL_CERT", "MINISTACK_SSL_KEY")


def serve(
    *,
    port: int = 4566,
    ready_file: Path | None = None,
    ttl_interval_seconds: float = 1.0,
    export_options: ExportOptions | None = None,
    until: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Serve a local AWS on 127.0.0.1 until SIGTERM or SIGINT; call it in the main thread.

    port: 0: any free port. ready_file: receives the endpoint URL once requests are answered.
    ttl_interval_seconds: interval of deletions of expired items. export_options: see ExportOptions.
    until: an awaitable; its return ends serving, too.

    Changes the environment of this process, which should do nothing else. All data is in memory
    and is lost at the end.

    Raises PortInUseError, SandboxNotInstalledError, or SandboxError for another emulator version.
    """
    with _listen(port) as listener:
        bound = listener.getsockname()[1]
        _prepare_environment(bound)
        sandbox = _Sandbox(_import_emulator(), export_options or ExportOptions())
        asyncio.run(sandbox.run(listener, ready_file, ttl_interval_seconds, until))


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Allows binding a port whose last connections are still closing.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        # Listen at once, so that no second sandbox can bind the same port.
        listener.listen(128)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            raise SandboxError(
                f"this user may not listen on port {port}", fix="use a port above 1023, or 0"
            ) from error
        raise PortInUseError(port) from error
    except OverflowError as error:
        listener.close()
        raise SandboxError(f"{port} is not a port", fix="use 0 to 65535") from error
    return listener


def _prepare_environment(port: int) -> None:
    for name in _EMULATOR_UNSET:
        os.environ.pop(name, None)
    os.environ.update(_EMULATOR_ENVIRONMENT, GATEWAY_PORT=str(port))
    # Lambda functions inherit it: they use this sandbox, whatever the caller's shell is set to.
    apply_environment(os.environ, f"http://{HOST}:{port}")


def _import_emulator() -> "_Emulator":
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("ministack")
    except PackageNotFoundError as error:
        raise SandboxNotInstalledError from error
    if installed != MINISTACK_VERSION:
        raise SandboxError(
            f"the sandbox needs ministack {MINISTACK_VERSION}, installed is {installed}",
            fix="install with pip install 'cdc-pipeline[sandbox]'",
        )
    from ministack import app
    from ministack.services import cloudwatch, dynamodb, firehose, glue, kinesis, s3

    return _Emulator(app, cloudwatch, dynamodb, firehose, glue, kinesis, s3)


@dataclass(frozen=True)
class _Emulator:
    """The emulator's modules that are corrected or called."""

    app: Any
    cloudwatch: Any
    dynamodb: Any
    firehose: Any
    glue: Any
    kinesis: Any
    s3: Any


class _Sandbox:
    """The corrected emulator as an ASGI application with its background work."""

    def __init__(self, emulator: _Emulator, options: ExportOptions) -> None:
        dynamodb, s3 = emulator.dynamodb, emulator.s3
        self._clock = clock = Clock()
        dynamodb.time = SandboxClock(dynamodb.time, clock)
        writes = Writes(dynamodb, clock)
        writes.install()
        self._expire_due = own_ttl(dynamodb, writes)

        async def put_object(bucket: str, key: str, body: bytes, headers: dict[str, str]) -> str:
            return await multipart_put(s3, bucket, key, body, headers)

        install_managed_key(s3)
        buckets = ForeignBuckets(s3)
        buckets.install()
        self._exports = Exports(dynamodb, writes, clock, put_object, buckets, options)
        self._exports.install()
        Replication(dynamodb, emulator.kinesis, emulator.cloudwatch, writes).install()
        Shards(emulator.kinesis).install()
        Stacks(emulator.app, dynamodb).install()
        self._deliveries = Deliveries(emulator.firehose, emulator.kinesis, emulator.glue, s3)
        self._deliveries.install()
        self._channels = Channels(emulator.kinesis, s3, emulator.cloudwatch)
        self._channels.install()
        self._emr = EmrServerless(emulator.app, s3)
        self._emr.install()
        self._control = Control(self._command_handlers(), self._state)
        self._emulator = emulator

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            # Not ministack's own, which runs start-up scripts and searches containers to remove.
            await _lifespan(receive, send)
        elif scope["type"] == "http" and scope["path"] == CONTROL_PATH:
            await self._control.respond(receive, send)
        else:
            if scope["type"] == "http":
                remember_caller(scope)
            await self._emulator.app.app(scope, receive, send)

    def _command_handlers(self) -> dict[str, Callable[[Any], None]]:
        faults, channels = self._exports.faults, self._channels.faults
        pace = self._emr.pace
        return {
            "stand_at": lambda micros: self._clock.stand_at(int(micros)),
            "fail_exports": lambda count: setattr(faults, "fail_exports", int(count)),
            "failure_code": lambda code: setattr(faults, "failure_code", str(code)),
            "failure_message": lambda text: setattr(faults, "failure_message", str(text)),
            "write_time": faults.set_write_time,
            "channel_delimiter": lambda text: setattr(channels, "delimiter", str(text)),
            "channel_dead_letters": lambda count: setattr(channels, "dead_letters", int(count)),
            "job_minute_seconds": lambda count: setattr(pace, "minute_seconds", float(count)),
        }

    def _state(self) -> dict[str, int]:
        faults = self._exports.faults
        return {"now_micros": self._clock.now(), "fail_exports": faults.fail_exports}

    async def run(
        self,
        listener: socket.socket,
        ready_file: Path | None,
        ttl_interval_seconds: float,
        until: Callable[[], Awaitable[object]] | None,
    ) -> None:
        from hypercorn.asyncio import serve as hypercorn_serve
        from hypercorn.config import Config

        # Numbers have 38 digits; the default context would round arithmetic in updates to 28.
        # Tasks inherit the context of the task that starts them.
        decimal.getcontext().prec = 38
        # Items and records are millions of long-lived dictionaries without cycles: garbage
        # collection among them would take more time than all other work.
        gc.freeze()
        gc.set_threshold(200_000, 50, 1000)
        self._emulator.app._MAIN_LOOP = asyncio.get_running_loop()
        config = Config()
        # hypercorn closes the descriptor passed to it, the caller closes the listener's own.
        config.bind = [f"fd://{os.dup(listener.fileno())}"]
        config.loglevel = "WARNING"
        config.keep_alive_timeout = 75
        config.graceful_timeout = 0.3
        stop = _stop_event()
        # The loop itself holds tasks weakly: without these names they could be collected.
        ending = asyncio.ensure_future(until()) if until is not None else None
        if ending is not None:
            ending.add_done_callback(lambda _: stop.set())
        reaper = asyncio.create_task(self._reap(ttl_interval_seconds))
        firehose = asyncio.create_task(self._deliveries.run())
        channels = asyncio.create_task(self._channels.run())
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        # The socket is listening already: a request sent now will be answered.
        _write_ready(ready_file, url)
        try:
            await hypercorn_serve(self, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
        finally:
            reaper.cancel()
            firehose.cancel()
            channels.cancel()
            if ending is not None:
                ending.cancel()
            self._exports.stop()
            await self._emr.stop()

    async def _reap(self, interval_seconds: float) -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                self._expire_due(self._clock.now() / 1_000_000)
            except Exception:  # one bad table must not end TTL for all of them
                _logger.exception("time to live: a pass failed, the next one goes on")


def _stop_event() -> asyncio.Event:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _write_ready(ready_file: Path | None, url: str) -> None:
    if ready_file is None:
        return
    draft = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
    draft.write_text(url)
    draft.replace(ready_file)
