"""A PostgreSQL of its own for the tests, on a free port of this machine."""

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdc_pipeline_tests.maven import Unavailable

_DEBIAN = Path("/usr/lib/postgresql")


@contextmanager
def running() -> Iterator[str]:
    """The address of an empty database. Raises `Unavailable`."""
    if importlib.util.find_spec("psycopg") is None:
        raise Unavailable("psycopg is not installed: `make test-catalogs` does that")
    programs = _programs()
    prefix = _as_other_user() if os.getuid() == 0 else []
    # Not pytest's own folder: the server's user must be able to reach it.
    folder = Path(tempfile.mkdtemp(prefix="cdc-pipeline-postgres-"))
    data = folder / "data"
    try:
        if prefix:
            shutil.chown(folder, "postgres", "postgres")
        initdb = [programs / "initdb", "-D", data, "-U", "app", "-A", "trust", "-E", "UTF8"]
        _run([*prefix, *initdb, "--locale=C.UTF-8", "--no-sync"])
        port = _free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        control = [*prefix, programs / "pg_ctl", "-D", data]
        _run([*control, "-w", "-l", folder / "log", "-o", options, "start"])
        try:
            yield f"postgresql://app@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: path.parts[-3].zfill(3))
    if not versions:
        raise Unavailable("there is no PostgreSQL: apt install postgresql")
    return versions[-1].parent


def _as_other_user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise Unavailable("PostgreSQL does not run as root, and no user is `postgres`") from None
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


def _run(command: list[str | Path]) -> None:
    # A server that outlives the command must not keep its output open.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
