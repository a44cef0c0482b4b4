"""The child process: what it binds, how it starts, fails and ends, and the clients' environment."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import boto3
import pytest

from cdc_pipeline.sandbox.errors import SandboxError
from cdc_pipeline.sandbox.process import SandboxProcess, apply_environment
from cdc_pipeline_tests.sandbox.clients import Aws, connect, wait_for

pytestmark = pytest.mark.slow

_ROOT = Path(__file__).resolve().parents[2]


def _port(process: SandboxProcess) -> int:
    return int(process.endpoint_url.rsplit(":", 1)[1])


def _listening(pid: int) -> list[tuple[str, int]]:
    """Return the TCP addresses a process listens on, from /proc (Linux)."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:
            continue
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[9] in inodes and (fields[3] == "0A" or table.startswith("udp")):
                found.append((address, int(port, 16)))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_listens_on_loopback_only(sandbox: SandboxProcess, aws: Aws) -> None:
    aws.dynamodb.list_tables()
    assert _listening(sandbox.pid) == [("0100007F", _port(sandbox))]


def test_two_sandboxes_share_nothing(aws: Aws, sandbox: SandboxProcess) -> None:
    aws.s3.create_bucket(Bucket="only-in-the-first")
    aws.s3.put_object(Bucket="only-in-the-first", Key="k", Body=b"1")
    with SandboxProcess() as second:
        assert _port(second) != _port(sandbox)
        other = connect(second.endpoint_url)
        assert other.s3.list_buckets()["Buckets"] == []
        other.s3.create_bucket(Bucket="only-in-the-first")
        assert "Contents" not in other.s3.list_objects_v2(Bucket="only-in-the-first")
    found = aws.s3.get_object(Bucket="only-in-the-first", Key="k")["Body"].read()
    assert found == b"1"


def test_a_busy_port_is_one_clear_message(sandbox: SandboxProcess) -> None:
    busy = SandboxProcess(port=_port(sandbox))
    started = time.monotonic()
    with pytest.raises(SandboxError) as caught:
        busy.start()
    assert time.monotonic() - started < 10
    assert f"port {_port(sandbox)} " in str(caught.value)
    assert "--port 0" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not busy.running


def test_a_port_is_busy_whoever_has_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SandboxError, match="in use by another process"):
            SandboxProcess(port=taken.getsockname()[1]).start()


def test_a_missing_emulator_is_one_clear_message(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import importlib.metadata, sys

        def missing(name):
            raise importlib.metadata.PackageNotFoundError(name)

        importlib.metadata.version = missing
        sys.modules["ministack"] = None
        import cdc_pipeline.sandbox.process
        from cdc_pipeline.sandbox.__main__ import main
        sys.exit(main(["--port", "0"]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    assert done.returncode == 1
    assert "pip install 'cdc-pipeline[sandbox]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_stops_quickly_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process = SandboxProcess()
    process.start()
    pid, port = process.pid, _port(process)
    client = connect(process.endpoint_url)
    client.dynamodb.list_tables()  # leaves a connection open
    assert os.getpgid(pid) != os.getpgrp()
    started = time.monotonic()
    process.stop()
    assert time.monotonic() - started < 2
    assert not process.running
    assert list(tmp_path.iterdir()) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    process.stop()
    with pytest.raises(SandboxError):
        _ = process.endpoint_url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_cleanly_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "cdc_pipeline.sandbox", "--port", "0"]
    child = subprocess.Popen(
        [*command, "--ready-file", str(ready)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    try:
        wait_for(ready.exists)
        connect(ready.read_text()).dynamodb.list_tables()
        started = time.monotonic()
        child.send_signal(number)
        output, _ = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0
    assert output == b""
    assert time.monotonic() - started < 2


def test_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import time
        from cdc_pipeline.sandbox.process import SandboxProcess
        process = SandboxProcess()
        process.start()
        print(process.endpoint_url, flush=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        # What a killed parent cannot remove goes with the test.
        env={**os.environ, "PYTHONPATH": str(_ROOT), "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    with parent.stdout:
        port = int(parent.stdout.readline().rsplit(":", 1)[1])
    parent.kill()
    parent.wait()

    def gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    wait_for(gone, seconds=5)


def test_waiting_for_the_parent_survives_garbage_collection(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import gc, sys, threading, time

        def collect():
            while True:
                time.sleep(0.02)
                gc.collect()

        threading.Thread(target=collect, daemon=True).start()
        from cdc_pipeline.sandbox.__main__ import main
        sys.exit(main(["--port", "0", "--ready-file", sys.argv[1], "--until-eof"]))
        """
    )
    ready = tmp_path / "ready"
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(ready)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    try:
        wait_for(ready.exists)
        time.sleep(0.4)
        assert child.poll() is None
        _, errors = child.communicate(timeout=60)  # closes its standard input
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, errors) == (0, b"")


def test_environment_isolates_from_real_aws(sandbox: SandboxProcess) -> None:
    env = {
        **os.environ,
        "AWS_PROFILE": "no-such-profile",
        "AWS_DEFAULT_PROFILE": "no-such-profile",
        "AWS_SESSION_TOKEN": "stale",
        "AWS_ENDPOINT_URL": "http://192.0.2.1:1",
        "AWS_ENDPOINT_URL_DYNAMODB": "http://192.0.2.1:1",
        "AWS_ENDPOINT_URL_S3": "http://192.0.2.1:1",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
        "AWS_CA_BUNDLE": "/nonexistent/bundle.pem",
        "AWS_CONFIG_FILE": "/nonexistent/config",
        "AWS_REGION": "eu-west-1",
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/r",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent/token",
        "HTTP_PROXY": "http://192.0.2.1:1",
        "HTTPS_PROXY": "http://192.0.2.1:1",
        "http_proxy": "http://192.0.2.1:1",
        "NO_PROXY": "example.com",
        "UNRELATED": "kept",
    }
    sandbox.apply_environment(env)
    assert env["UNRELATED"] == "kept"
    assert env["NO_PROXY"] == env["no_proxy"] == "example.com,127.0.0.1,localhost"
    assert env["AWS_CONFIG_FILE"] == env["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
    assert not [n for n in env if n in SandboxProcess.UNSET or n.startswith("AWS_ENDPOINT_URL_")]
    expected = sandbox.environment()
    assert {n: env[n] for n in expected if n.lower() != "no_proxy"} == {
        n: value for n, value in expected.items() if n.lower() != "no_proxy"
    }
    program = textwrap.dedent(
        """
        import boto3
        for service in ("dynamodb", "dynamodbstreams", "s3", "glue"):
            print(boto3.client(service).meta.endpoint_url)
        boto3.client("dynamodb").list_tables()
        boto3.client("s3").list_buckets()
        print(boto3.client("sts").get_caller_identity()["Account"])
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )
    assert done.stderr == ""
    assert done.stdout.split() == [sandbox.endpoint_url] * 4 + ["000000000000"]


def test_functions_reach_their_own_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_PROFILE", "production")
    code = "import os\n\ndef handler(event, context):\n    return dict(os.environ)\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("code.py", code)
    with SandboxProcess() as process:
        monkeypatch.undo()  # it is for the sandbox, not for our client
        lambdas = connect(process.endpoint_url).lambdas
        lambdas.create_function(
            FunctionName="environment",
            Runtime="python3.12",
            Handler="code.handler",
            Role="arn:aws:iam::000000000000:role/any",
            Code={"ZipFile": content.getvalue()},
        )
        found = json.loads(lambdas.invoke(FunctionName="environment")["Payload"].read())
        assert found["AWS_ENDPOINT_URL"] == process.endpoint_url
        assert not {"AWS_ENDPOINT_URL_S3", "AWS_PROFILE"} & found.keys()


def test_environment_is_applied_to_this_process(
    sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    env: dict[str, str] = {"AWS_PROFILE": "no-such-profile"}
    apply_environment(env, sandbox.endpoint_url)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    client = boto3.Session().client("dynamodb")
    assert client.meta.endpoint_url == sandbox.endpoint_url
    assert client.meta.region_name == "us-east-1"
