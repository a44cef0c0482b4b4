"""The sandbox as a child process of a command or a test, and the environment of its clients."""

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Self

from cdc_pipeline.sandbox.errors import SandboxError
from cdc_pipeline.sandbox.export_options import ExportOptions

REGION = "us-east-1"
# Each of these makes an AWS client read another profile, assume a role, or leave loopback.
UNSET = (
    "AWS_ACCOUNT_ID",
    "AWS_CA_BUNDLE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_DEFAULT_PROFILE",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
# Followed by a service name, as in AWS_ENDPOINT_URL_DYNAMODB; overrides AWS_ENDPOINT_URL.
UNSET_PREFIX = "AWS_ENDPOINT_URL_"

_START_SECONDS = 30.0
_STOP_SECONDS = 3.0
_LOG_LINES = 15
_LOOPBACK = ("127.0.0.1", "localhost")


def client_environment(endpoint_url: str) -> dict[str, str]:
    """Return the variables that point any AWS client at the sandbox and away from real AWS.

    The variables in `UNSET` and those that start with `UNSET_PREFIX` must be removed as well;
    `apply_environment` does both.
    """
    bypass = ",".join(_LOOPBACK)
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "sandbox",
        "AWS_SECRET_ACCESS_KEY": "sandbox",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": bypass,
        "no_proxy": bypass,
    }


def apply_environment(env: MutableMapping[str, str], endpoint_url: str) -> None:
    """Change `env` (such as os.environ) so that AWS clients reach the sandbox and nothing else.

    Hosts that already bypass a proxy continue to bypass it.
    """
    for name in [name for name in env if name in UNSET or name.startswith(UNSET_PREFIX)]:
        del env[name]
    bypassed = [host.strip() for name in ("NO_PROXY", "no_proxy") for host in _split(env, name)]
    env.update(client_environment(endpoint_url))
    bypass = ",".join(dict.fromkeys([*bypassed, *_LOOPBACK]))
    env.update({"NO_PROXY": bypass, "no_proxy": bypass})


class SandboxProcess:
    """A sandbox in a child process; use it as a context manager, or with start() and stop().

    port: 0, the default: any free port. log_file: output of the child, None: a temporary file,
    removed with the sandbox. The child has a process group of its own, so that Ctrl-C reaches only
    the parent, and it ends at any end of the parent. exports: by default AWS's times.

    Raises SandboxError with the child's last lines if it is not ready in 30 s or ends before.
    """

    UNSET = UNSET
    module = "cdc_pipeline.sandbox"
    """What the child runs; a test serves a sandbox of its own."""

    def __init__(
        self,
        *,
        port: int = 0,
        log_file: Path | None = None,
        ttl_interval_seconds: float = 1.0,
        exports: ExportOptions | None = None,
    ) -> None:
        self._port = port
        self._log_file = log_file
        self._ttl_interval_seconds = ttl_interval_seconds
        self._exports = exports or ExportOptions()
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._endpoint_url: str | None = None

    def __enter__(self) -> Self:
        """Start the sandbox and wait until it answers requests."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the sandbox and delete its data."""
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """URL such as `http://127.0.0.1:4566`; raises SandboxError unless the sandbox runs."""
        if self._endpoint_url is None:
            raise SandboxError("the sandbox is not running", fix="call start() first")
        return self._endpoint_url

    @property
    def pid(self) -> int:
        """Process id of the child; raises SandboxError unless the sandbox runs."""
        if self._child is None:
            raise SandboxError("the sandbox is not running", fix="call start() first")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the child is alive."""
        return self._child is not None and self._child.poll() is None

    def environment(self) -> dict[str, str]:
        """Return `client_environment` of this sandbox."""
        return client_environment(self.endpoint_url)

    def apply_environment(self, env: MutableMapping[str, str]) -> None:
        """Change `env` so that AWS clients reach this sandbox and nothing else."""
        apply_environment(env, self.endpoint_url)

    def start(self) -> None:
        """Start the child and wait until it answers requests."""
        if self._child is not None:
            raise SandboxError("the sandbox runs already", fix="call stop() first")
        self._folder = Path(tempfile.mkdtemp(prefix="cdc-pipeline-sandbox-"))
        ready_file = self._folder / "ready"
        log_file = self._log_file or self._folder / "sandbox.log"
        try:
            self._child = self._spawn(ready_file, log_file)
            atexit.register(self.stop)
            self._endpoint_url = _await_ready(self._child, ready_file, log_file)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Terminate the child, kill it after 3 s; does nothing if it is not running."""
        atexit.unregister(self.stop)
        child, self._child = self._child, None
        self._endpoint_url = None
        if child is not None:
            child.terminate()
            try:
                child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdin is not None:
                child.stdin.close()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _spawn(self, ready_file: Path, log_file: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", self.module]
        command += ["--port", str(self._port), "--ready-file", str(ready_file)]
        command += ["--ttl-interval", str(self._ttl_interval_seconds)]
        for name, seconds in (
            ("--export-delay", self._exports.delay_seconds),
            ("--least-window", self._exports.least_window_seconds),
            ("--restorable-lag", self._exports.restorable_lag_seconds),
        ):
            command += [name, str(seconds)]
        command += ["--until-eof"]
        with log_file.open("ab") as log:
            return subprocess.Popen(
                command,
                # Never written to: any end of this process breaks the pipe, which ends the child.
                # A parent-death signal would depend on the thread instead.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=child_environment(),
            )


def local_client(service: str) -> object:
    """Return a boto3 client of this process's environment, which must point at a sandbox."""
    import boto3

    # boto3's default session would keep its first account and endpoint.
    return boto3.Session().client(service)  # type: ignore[call-overload]


def child_environment() -> dict[str, str]:
    """Return this process's environment with the package importable from any directory."""
    env = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
    return env


def _await_ready(child: subprocess.Popen[bytes], ready_file: Path, log_file: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            return ready_file.read_text()
        if child.poll() is not None:
            raise SandboxError(f"the sandbox could not start\n{_last_lines(log_file)}")
        time.sleep(0.02)
    raise SandboxError(
        f"the sandbox was not ready after {_START_SECONDS:.0f} s\n{_last_lines(log_file)}"
    )


def _last_lines(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])


def _split(env: MutableMapping[str, str], name: str) -> list[str]:
    return [host for host in env.get(name, "").split(",") if host.strip()]
