"""The guard of a child process: its exit code, and the end of the command with its parent."""

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cdc_pipeline.sandbox import guard
from cdc_pipeline_tests.sandbox.clients import wait_for

pytestmark = pytest.mark.slow

# Holds a lock, and ends at an interrupt with a note.
_HOLD = """
import fcntl, signal, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("locked")
file.flush()
try:
    signal.pause()
except KeyboardInterrupt:
    file.write(", interrupted")
"""


def _guarded(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", guard.__file__, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_that_of_the_command(code: int) -> None:
    with _guarded(sys.executable, "-c", f"raise SystemExit({code})") as process:
        # Its standard input stays open.
        assert process.wait(60) == code
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("options", "written"), [((), "locked, interrupted"), (("--grace", "0"), "locked")]
)
@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_the_command_ends_with_standard_input_or_a_signal(
    tmp_path: Path, options: tuple[str, ...], written: str, number: signal.Signals | None
) -> None:
    lock = tmp_path / "lock"
    with _guarded(*options, sys.executable, "-c", _HOLD, str(lock)) as process:
        assert process.stdin is not None
        wait_for(lambda: lock.exists() and lock.read_text() == "locked")
        if number is None:
            process.stdin.close()
        else:
            process.send_signal(number)
        process.wait(60)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert lock.read_text() == written
