"""The DynamoDBs of others: each installed once per machine, and started as a child.

`python -m cdc_pipeline_tests.contract.servers` installs them and prints which cannot be had here.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cdc_pipeline_tests.maven import Unavailable

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdc_pipeline"
"""Outside the checkout, so that a machine builds each version once."""

_DYNOXIDE = "3.2.0"
_DYNALITE = "4.0.0"
_MOTO = "5.2.5"
_NODE = 20
"""The least that dynalite 4 runs on."""

_LOCK = Path(__file__).with_name("dynalite")
_CARGO_SECONDS = 1800
_NPM_SECONDS = 240
_START_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """A server: `install` brings it here if need be, `command` starts it on a port.

    Both raise `Unavailable` where they cannot.
    """

    name: str
    version: str
    install: Callable[[], None]
    command: Callable[[int], list[str]]

    @contextmanager
    def running(self) -> Iterator[str]:
        """The endpoint of a fresh server in memory; raises `Unavailable`.

        A server that does not start is an error like any other.
        """
        port = _free_port()
        # The guard ends it when its standard input closes, however we end.
        command = [sys.executable, "-m", "cdc_pipeline.sandbox.guard", *self.command(port)]
        log = CACHE / f"{self.name}.{port}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        assert process.stdin is not None  # it was started with a pipe
        try:
            endpoint_url = f"http://127.0.0.1:{port}"
            _await(self.name, endpoint_url, process, log)
            yield endpoint_url
        finally:
            process.stdin.close()
            process.wait()
            log.unlink()


# ------------------------------------------------------------------------------------- dynoxide

_DYNOXIDE_FOLDER = CACHE / f"dynoxide-rs-{_DYNOXIDE}"


def _install_dynoxide() -> None:
    if _DYNOXIDE_FOLDER.exists():
        return
    cargo = _program("cargo", "Rust 1.88 or newer")
    # Without optimisation: two minutes of one core in place of ten, and fast enough for tests.
    command = [cargo, "install", "dynoxide-rs", "--version", f"={_DYNOXIDE}", "--locked", "--debug"]
    command += ["--no-default-features", "--features", "native-sqlite,http-server,cli"]
    with _draft(_DYNOXIDE_FOLDER) as draft:
        settings = {"CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_TERM_COLOR": "never"}
        _run([*command, "--jobs", "2", "--root", str(draft)], draft, _CARGO_SECONDS, settings)


def _dynoxide(port: int) -> list[str]:
    program = _installed(_DYNOXIDE_FOLDER, "bin/dynoxide")
    return [program, "serve", "--host", "127.0.0.1", "--port", str(port)]


# ------------------------------------------------------------------------------------- dynalite

_DYNALITE_FOLDER = CACHE / f"dynalite-{_DYNALITE}"


def _install_dynalite() -> None:
    if _DYNALITE_FOLDER.exists():
        return
    npm = _program("npm", f"Node.js {_NODE} or newer with npm")
    _node()
    with _draft(_DYNALITE_FOLDER) as draft:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_LOCK / name, draft)
        # The one script would compile what comes compiled; a store in memory needs neither.
        _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], draft, _NPM_SECONDS)


def _dynalite(port: int) -> list[str]:
    program = _installed(_DYNALITE_FOLDER, "node_modules/dynalite/cli.js")
    command = [_node(), program, "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--createTableMs", "0", "--deleteTableMs", "0"]


def _node() -> str:
    node = _program("node", f"Node.js {_NODE} or newer")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    major = version.stdout.strip().removeprefix("v").partition(".")[0]
    if not major.isdecimal() or int(major) < _NODE:
        raise Unavailable(
            f"`node` is {version.stdout.strip() or 'broken'}: it needs {_NODE} or newer"
        )
    return node


# ----------------------------------------------------------------------------------------- moto


def _require_moto() -> None:
    """It is of the extra `contract`."""
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask", "flask_cors")):
        raise Unavailable("it is not installed: `make test-contract` does that")


def _moto(port: int) -> list[str]:
    _require_moto()
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


DYNOXIDE = Server("dynoxide", _DYNOXIDE, _install_dynoxide, _dynoxide)
DYNALITE = Server("dynalite", _DYNALITE, _install_dynalite, _dynalite)
MOTO = Server("moto", _MOTO, _require_moto, _moto)


# ---------------------------------------------------------------------------------------- shared


def _program(name: str, wanted: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"there is no `{name}` on PATH: install {wanted}")
    return found


def _installed(folder: Path, program: str) -> str:
    if not folder.exists():
        raise Unavailable("it is not installed: `make test-contract` does that")
    return str(folder / program)


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A folder that gets its name once it is complete."""
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    print(f"Installing {folder}, once.", flush=True)
    try:
        yield draft
        if not folder.exists():  # another process may have been faster
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _run(
    command: list[str], folder: Path, seconds: float, settings: dict[str, str] | None = None
) -> None:
    env = os.environ | (settings or {})
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} did not end within {seconds:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        wanted = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise Unavailable(f"{command[0]} failed: {wanted[0]}")


def _await(name: str, endpoint_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    client = boto3.Session("sandbox", "sandbox", region_name="us-east-1").client(
        "dynamodb", endpoint_url=endpoint_url, config=Config(proxies={}, retries={"mode": "legacy"})
    )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.list_tables()
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
    last = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
    raise RuntimeError(f"{name} did not start: {' '.join(last) or 'no output'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Install all of them, and print which are left out and why."""
    for server in (DYNOXIDE, DYNALITE, MOTO):
        try:
            server.install()
        except Unavailable as reason:
            print(f"Left out: {server.name} {server.version}: {reason}")


if __name__ == "__main__":
    main()
